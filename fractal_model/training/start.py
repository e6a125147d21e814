"""The weights of an existing model from which a training starts (fine-tuning).

Decided here: the content of the weights decides the run, not the name of their source, because an
alias of the registry may move. Weights are adapted to the classes of the data set before they are
stored for the workers, so the stored copy is itself a source that gives the same run.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fractal_model.checkpoints.checkpoint import Progress, save_checkpoint
from fractal_model.checkpoints.storage import is_complete, store_checkpoint
from fractal_model.common.errors import FractalError
from fractal_model.common.safe_text import safe_text
from fractal_model.config.model import ModelConfig
from fractal_model.config.params import Size
from fractal_model.model.fractal import FractalModel, initialise
from fractal_model.model.weights import weights_checksum
from fractal_model.tracking import tags
from fractal_model.tracking.model_source import load_model, pin_version
from fractal_model.tracking.registry import NamedVersion

_CLASS_TABLE = "class_embedding.weight"


@dataclass
class Start:
    """The weights that a training starts from, and where they come from."""

    source: str
    """Source of the weights, as the user gave it."""
    source_checksum: str
    """Checksum of the weights in the source. It is also in the records of that model's
    evaluations."""
    version: NamedVersion | None
    """The registered version that `source` named when it was read; None if it is a folder."""
    checksum: str
    """Checksum of the weights that training starts from, which have the classes of its data set."""
    classes: int
    """Number of classes of the data set."""
    new_classes: int
    """Number of classes whose embeddings are new, that is random."""
    model: FractalModel | None
    """The model to start from, on the CPU; None after `store`, which releases its memory."""

    @property
    def tags(self) -> dict[str, str]:
        """MLflow tags of the training run: source, checksum and parent."""
        own = {
            tags.START_TAG: safe_text(self.source),
            tags.START_CHECKSUM_TAG: self.source_checksum,
        }
        if self.version is not None:
            own[tags.PARENT_VERSION_TAG] = f"{self.version.name}/{self.version.number}"
            if self.version.training_run is not None:
                own[tags.PARENT_RUN_TAG] = self.version.training_run
        return own

    def describe(self) -> str:
        """Describe the start on one line for people."""
        version = f", version {self.version.number}" if self.version else ""
        classes = ""
        if self.new_classes:
            classes = f"; new classes: {self.new_classes} of {self.classes}"
        return f"first weights: {self.source}{version}{classes}"

    def store(self, place: str, *, size: str, fingerprint: str) -> None:
        """Write the weights as a checkpoint to the folder or address `place`, unless a complete one
        is there, and release their memory. `size` and `fingerprint` are those of the run.
        FractalError: the disk is full, or the object store does not answer."""
        model, self.model = self.model, None
        if is_complete(place):
            return
        assert model is not None
        progress = Progress(size=size, fingerprint=fingerprint, position=0, steps=0)
        with store_checkpoint(place) as folder:
            save_checkpoint(folder, model=model, optimizer=None, progress=progress)


def read_start(size: Size, outputs: Path) -> Start | None:
    """Read the weights that the recipe of `size` starts from, and adapt them to its classes. None:
    the recipe starts from random weights. FractalError: the source is missing, damaged or not
    finite, or its layout is not that of the size.

    `size.model` must have the class names of the data set. Models are registered in the MLflow
    store of `outputs`.
    """
    source = size.training.start_from
    if source is None:
        return None
    try:
        pinned, version = pin_version(source, outputs)
        parent = load_model(pinned, outputs)
        _require_layout(parent.config, size)
    except FractalError as error:
        raise FractalError(f"start_from {source}: {error}") from error
    model = adapt_classes(parent, size.model, size.training.seed)
    source_checksum = weights_checksum(parent)
    return Start(
        source=source,
        source_checksum=source_checksum,
        version=version,
        checksum=weights_checksum(model),
        classes=size.model.num_classes,
        new_classes=size.model.num_classes - len(_kept_classes(parent.config, size.model)),
        model=model,
    )


def adapt_classes(parent: FractalModel, config: ModelConfig, seed: int) -> FractalModel:
    """Return a model of `config` with the weights of `parent`, whose layout is the same. If their
    classes differ, the class table is new: a class that `parent` knows by name keeps its embedding,
    and the others are initialised with `seed`. Tensors other than the table are shared."""
    model = FractalModel(config)  # Not without memory, as its rotation factors are no weights.
    table = _adapt_table(parent, config, seed)
    model.load_state_dict({**parent.state_dict(), _CLASS_TABLE: table}, assign=True)
    return model.eval()


def _adapt_table(parent: FractalModel, config: ModelConfig, seed: int) -> Tensor:
    """Class table of `config`, (num_classes, C)."""
    theirs = parent.class_embedding.weight.detach()
    table = nn.Embedding(config.num_classes, theirs.shape[1])
    initialise(table, torch.Generator().manual_seed(seed))
    rows = table.weight.detach()
    for ours, number in _kept_classes(parent.config, config).items():
        rows[ours] = theirs[number]
    return rows


def _kept_classes(parent: ModelConfig, config: ModelConfig) -> dict[int, int]:
    """Number in `parent` of each class of `config` that keeps its embedding. Classes have the same
    name or, if one of the two models has no class names, the same number of as many classes."""
    if parent.class_names and config.class_names:
        numbers = {name: number for number, name in enumerate(parent.class_names)}
        names = enumerate(config.class_names)
        return {number: numbers[name] for number, name in names if name in numbers}
    if parent.num_classes != config.num_classes:
        return {}
    return {number: number for number in range(config.num_classes)}


def _require_layout(parent: ModelConfig, size: Size) -> None:
    """Raise FractalError with the first difference of the layouts if weights of `parent` cannot be
    weights of `size`."""
    theirs, ours = _layout(parent), _layout(size.model)
    for name, expected in ours.items():
        if theirs.get(name) != expected:
            raise FractalError(
                f"the model's {name} is {theirs.get(name)}, that of the size {size.name} is "
                f"{expected}: choose a model with the layout of {size.name}, or make "
                f"models.{size.name} equal to the model's layout"
            )


def _layout(model: ModelConfig) -> dict[str, object]:
    """Everything that decides what the weights mean, except the classes, by its name for people.
    Models with equal patch sizes have the same names."""
    sides = [level.patch_size for level in model.levels]
    layout: dict[str, object] = {"resolution": sides[0], "list of patch sizes": [*sides, 1]}
    without_weights = {"patch_size", "sub_patch_size", "dropout"}
    for number, level in enumerate(model.levels):
        # All settings, also those that are not written at their defaults.
        settings = ((key, value) for key, value in level if key not in without_weights)
        layout |= {_in_words(key, f"level {number}"): value for key, value in settings}
    return layout | {_in_words(key, "the pixel network"): value for key, value in model.pixel}


def _in_words(setting: str, part: str) -> str:
    names = {"blocks": "number of blocks", "heads": "number of heads"}
    names |= {"conditions": "number of conditions", "qk_norm": "norm of queries and keys"}
    return f"{names.get(setting, setting.replace('_', ' '))} in {part}"
