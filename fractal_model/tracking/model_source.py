"""Loads a model from a checkpoint, an exported folder or the registry."""

from pathlib import Path

from fractal_model.checkpoints.checkpoint import CHECKPOINT_ONLY, load_checkpoint
from fractal_model.common.errors import FractalError
from fractal_model.model.fractal import FractalModel
from fractal_model.model.pretrained import is_pretrained_folder
from fractal_model.tracking import registry, store

REGISTRY_SCHEME = "models:/"
AVERAGED = "#ema"
"""Suffix of a model's source that selects the moving average of the weights."""


def load_model(source: str, outputs: Path) -> FractalModel:
    """Load a model on the CPU, in evaluation mode. FractalError: the model is missing or damaged.

    `source` is the folder of a checkpoint or of an exported model, or `models:/NAME@ALIAS` or
    `models:/NAME/VERSION` in the MLflow store of `outputs`. If `source` ends in `#ema`, the moving
    average of the weights is loaded; an exported model has none.
    """
    source, averaged = source.removesuffix(AVERAGED), source.endswith(AVERAGED)
    folder = Path(source)
    if source.startswith(REGISTRY_SCHEME):
        store.connect(outputs)
        folder = registry.fetch_checkpoint(source)
    # An incomplete checkpoint must not be taken for an exported model.
    elif is_pretrained_folder(folder, foreign=CHECKPOINT_ONLY):
        if averaged:
            raise FractalError(
                f"{folder} is an exported model, which has no moving average: leave out "
                f"{AVERAGED}, or name the checkpoint that it was exported from"
            )
        return FractalModel.from_pretrained(folder)
    elif folder.is_dir() and not any((folder / name).exists() for name in CHECKPOINT_ONLY):
        raise FractalError(
            f"the folder {folder} holds neither a checkpoint nor an exported model: check the path"
        )
    return load_checkpoint(folder).build_model(averaged=averaged)


def fetch_registered(size: str, source: str | None) -> registry.RegisteredCheckpoint:
    """Fetch a version of a size, with its checkpoint, from the connected MLflow store. `source` is
    `models:/fractal-<size>@ALIAS` or `models:/fractal-<size>/VERSION`; with None, fetch the
    candidate. FractalError: there is no such version, or `source` names another size."""
    if source is None:
        return registry.resolve(size)
    name, at, alias = source.removeprefix(REGISTRY_SCHEME).partition("@")
    name, _, version = name.partition("/")
    if name != registry.model_name(size) or bool(alias) == bool(version):
        raise FractalError(
            f"{source} is no model of the size {size}: use models:/{registry.model_name(size)}"
            f"@{registry.CANDIDATE}, or models:/{registry.model_name(size)}/VERSION"
        )
    return registry.resolve(size, alias) if at else registry.fetch(size, version)
