"""Loads a model from a checkpoint, an exported folder, the Hugging Face hub or the registry.

Decided here: MLflow is imported only for a model of the registry.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

from fractal_model.checkpoints.checkpoint import CHECKPOINT_ONLY, load_checkpoint
from fractal_model.common.errors import FractalError
from fractal_model.config.model import ModelConfig
from fractal_model.config.params import DEFAULT_FILE, load_params
from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.weights import MODEL, parse_weights
from fractal_model.model.fractal import FractalModel, Guide
from fractal_model.model.pretrained import is_pretrained_folder, read_serving
from fractal_model.model.weights import weights_checksum
from fractal_model.sampling.guide import pin_guide, require_guide

if TYPE_CHECKING:
    from fractal_model.tracking import registry

REGISTRY_SCHEME = "models:/"
_MARK = "#"
_WITH_WEIGHTS = re.compile(
    rf"(?P<place>.*){_MARK}(?P<weights>model|ema(?:-[^/{_MARK}]*)?)", re.DOTALL
)
_REGISTERED_WITH_WEIGHTS = re.compile(
    rf"(?P<place>{REGISTRY_SCHEME}[^{_MARK}]*){_MARK}(?P<weights>.*)", re.DOTALL
)
"""The name of a registered model has no mark, but that of a folder may have one."""
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_STORE_VARIABLE = "MLFLOW_TRACKING_URI"


@overload
def split_weights(source: str) -> tuple[str, str | None]: ...
@overload
def split_weights(source: str | None) -> tuple[str | None, str | None]: ...
def split_weights(source: str | None) -> tuple[str | None, str | None]:
    """Split a model's source into its place and the name of the weights that it selects with
    `#model`, `#ema` or `#ema-0.999`; None if it selects none. FractalError: the decay is no number
    between 0 and 1, or a registered model has another word after the mark."""
    text = source or ""
    match = _WITH_WEIGHTS.fullmatch(text) or _REGISTERED_WITH_WEIGHTS.fullmatch(text)
    if match is None:
        return source, None
    try:
        return match["place"], parse_weights(match["weights"])
    except ValueError as error:
        raise FractalError(f"the end of the model {source}: {error}") from error


def select_weights(place: str, weights: str) -> str:
    """Return the source of a model with the `weights` of the checkpoint at `place`, such as
    `models:/fractal-digits@champion#ema-0.999`."""
    return f"{place}{_MARK}{weights}"


def load_model(source: str, outputs: Path | None = None) -> FractalModel:
    """Load a model on the CPU, in evaluation mode, with its sampling settings (`serving`).
    FractalError: the model is missing or damaged.

    `source` is the folder of a checkpoint or of an exported model, a repository USER/NAME of the
    Hugging Face hub, or `models:/NAME@ALIAS` or `models:/NAME/VERSION` in the MLflow store of
    `outputs` (None: the store of the current folder's params.yaml). The weights are those that the
    model is served with. If `source` ends in `#model` they are the trained ones, with `#ema` the
    only moving average, and with `#ema-0.999` the one with this decay.
    """
    place, weights = split_weights(source)
    folder = Path(place)
    if place.startswith(REGISTRY_SCHEME):
        return _load_registered(place, weights, outputs)
    # An incomplete checkpoint must not be taken for an exported model.
    if is_pretrained_folder(folder, foreign=CHECKPOINT_ONLY) or _is_hub_name(place):
        return _load_pretrained(place, weights)
    if folder.is_dir() and not any(any(folder.glob(name)) for name in CHECKPOINT_ONLY):
        raise FractalError(
            f"the folder {folder} holds neither a checkpoint nor an exported model: check the path"
        )
    if folder.is_file():
        raise FractalError(
            f"{folder} is a file, expected the folder of a model: a published checkpoint is "
            f"imported with `fractal import` first"
        )
    if not folder.exists():
        raise FractalError(
            f"there is no model {place}: give the folder of a checkpoint or of an exported model, "
            f"a repository USER/NAME of the hub, or a registered model {REGISTRY_SCHEME}NAME@ALIAS"
        )
    return load_checkpoint(folder).build_model(weights, mark=_MARK)


def read_guide(source: str | None, model: ModelConfig, outputs: Path | None) -> Guide | None:
    """Load the guide of sampling settings, for a model with this configuration; None without a
    guide. `source` and `outputs` are as in `load_model`. FractalError: the guide is missing or
    damaged, or does not fit the model."""
    if source is None:
        return None
    try:
        guide = load_model(source, outputs)
        require_guide(guide.config, model)
    except FractalError as error:
        raise FractalError(f"guide {source}: {error}") from error
    return Guide(guide, weights_checksum(guide))


def attach_guide(
    model: FractalModel, settings: SamplingConfig, outputs: Path | None
) -> SamplingConfig:
    """Load the guide that the settings name, if any, and give it to the model. Return the settings
    with the guide's checksum in place of its name. FractalError: see `read_guide`."""
    model.guide = read_guide(settings.guide, model.config, outputs)
    return pin_guide(settings, model.guide)


def _load_registered(uri: str, weights: str | None, outputs: Path | None) -> FractalModel:
    from fractal_model.tracking import registry, store

    if outputs is None and not os.environ.get(_STORE_VARIABLE):
        outputs = _project_outputs(uri)
    store.connect(outputs or Path())  # With the variable set, MLflow needs no folder.
    folder = registry.fetch_checkpoint(uri)
    checkpoint = replace(load_checkpoint(folder), serving=read_serving(folder.parent))
    return checkpoint.build_model(weights, mark=_MARK)


def _project_outputs(uri: str) -> Path:
    if not DEFAULT_FILE.is_file():
        raise FractalError(
            f"{uri} is in no MLflow store that is known here, because {Path.cwd()} has no "
            f"{DEFAULT_FILE}: run in the project's folder, or set {_STORE_VARIABLE}"
        )
    return load_params().paths.outputs


def _load_pretrained(place: str, weights: str | None) -> FractalModel:
    model = FractalModel.from_pretrained(place)
    own = MODEL if model.serving is None else model.serving.weights
    if weights not in (None, own):
        raise FractalError(
            f"{place} is an exported model, which has the weights {own} alone: leave out "
            f"{_MARK}{weights}, or name the checkpoint that it was exported from"
        )
    return model


def _is_hub_name(place: str) -> bool:
    """True if `place` is written as USER/NAME and can be no mistyped path, because there is no
    folder USER."""
    return _HUB_NAME.fullmatch(place) is not None and not Path(place).parent.is_dir()


def pin_version(source: str, outputs: Path) -> tuple[str, registry.NamedVersion | None]:
    """Return the source without an alias, which may move, and its registered version. A folder is
    returned unchanged, with None. FractalError: `source` names no version in the MLflow store of
    `outputs`."""
    if not source.startswith(REGISTRY_SCHEME):
        return source, None
    from fractal_model.tracking import registry, store

    uri, weights = split_weights(source)
    store.connect(outputs)
    version = registry.find_version(uri)
    pinned = f"{REGISTRY_SCHEME}{version.name}/{version.number}"
    return select_weights(pinned, weights) if weights else pinned, version


def fetch_registered(size: str, source: str | None) -> registry.RegisteredCheckpoint:
    """Fetch a version of a size, with its checkpoint, from the connected MLflow store. `source` is
    `models:/fractal-<size>@ALIAS` or `models:/fractal-<size>/VERSION`; with None, fetch the
    candidate. FractalError: there is no such version, or `source` names another size."""
    from fractal_model.tracking import registry

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
