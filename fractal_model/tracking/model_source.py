"""Loads a model from a checkpoint, an exported folder or the registry."""

import re
from pathlib import Path
from typing import overload

from fractal_model.checkpoints.checkpoint import CHECKPOINT_ONLY, load_checkpoint
from fractal_model.common.errors import FractalError
from fractal_model.config.weights import MODEL, parse_weights
from fractal_model.model.fractal import FractalModel
from fractal_model.model.pretrained import is_pretrained_folder
from fractal_model.tracking import registry, store

REGISTRY_SCHEME = "models:/"
_MARK = "#"
_WITH_WEIGHTS = re.compile(rf"(?P<place>.*){_MARK}(?P<weights>ema(?:-[^/{_MARK}]*)?)", re.DOTALL)


@overload
def split_weights(source: str) -> tuple[str, str | None]: ...
@overload
def split_weights(source: str | None) -> tuple[str | None, str | None]: ...
def split_weights(source: str | None) -> tuple[str | None, str | None]:
    """Split a model's source into its place and the name of the moving average that it selects with
    `#ema` or `#ema-0.999`; None if it selects none. FractalError: the decay is no number between 0
    and 1."""
    match = _WITH_WEIGHTS.fullmatch(source or "")
    if match is None:
        return source, None
    try:
        return match["place"], parse_weights(match["weights"])
    except ValueError as error:
        raise FractalError(f"the end of the model {source}: {error}") from error


def select_weights(place: str, weights: str) -> str:
    """Return the source of a model with the moving average `weights` of the checkpoint at `place`,
    such as `models:/fractal-digits@champion#ema-0.999`."""
    return f"{place}{_MARK}{weights}"


def load_model(source: str, outputs: Path) -> FractalModel:
    """Load a model on the CPU, in evaluation mode. FractalError: the model is missing or damaged.

    `source` is the folder of a checkpoint or of an exported model, or `models:/NAME@ALIAS` or
    `models:/NAME/VERSION` in the MLflow store of `outputs`. If `source` ends in `#ema`, the only
    moving average of the weights is loaded, and with `#ema-0.999` the one with this decay; an
    exported model has none.
    """
    source, weights = split_weights(source)
    folder = Path(source)
    if source.startswith(REGISTRY_SCHEME):
        store.connect(outputs)
        folder = registry.fetch_checkpoint(source)
    # An incomplete checkpoint must not be taken for an exported model.
    elif is_pretrained_folder(folder, foreign=CHECKPOINT_ONLY):
        if weights is not None:
            raise FractalError(
                f"{folder} is an exported model, which has no moving average: leave out "
                f"{_MARK}{weights}, or name the checkpoint that it was exported from"
            )
        return FractalModel.from_pretrained(folder)
    elif folder.is_dir() and not any(any(folder.glob(name)) for name in CHECKPOINT_ONLY):
        raise FractalError(
            f"the folder {folder} holds neither a checkpoint nor an exported model: check the path"
        )
    return load_checkpoint(folder).build_model(weights or MODEL, mark=_MARK)


def pin_version(source: str, outputs: Path) -> tuple[str, registry.NamedVersion | None]:
    """Return the source without an alias, which may move, and its registered version. A folder is
    returned unchanged, with None. FractalError: `source` names no version in the MLflow store of
    `outputs`."""
    if not source.startswith(REGISTRY_SCHEME):
        return source, None
    uri, weights = split_weights(source)
    store.connect(outputs)
    version = registry.find_version(uri)
    pinned = f"{REGISTRY_SCHEME}{version.name}/{version.number}"
    return select_weights(pinned, weights) if weights else pinned, version


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
