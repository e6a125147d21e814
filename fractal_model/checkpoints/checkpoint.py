"""The checkpoint: a folder that is complete or does not exist, and whose loading runs no code.

    model.safetensors      weights
    ema-0.999.safetensors  moving average of the weights; one file for each decay of the recipe
    config.json            configuration of the model
    serving.json           weights to sample with and the sampling settings; absent in the registry,
                           whose versions have their own
    optimizer.pt           optimiser state, a torch file that loads with weights_only=True; absent
                           in an imported checkpoint and in the registry
    progress.json          number of images seen, size, fingerprint of the run
    checksums.json         SHA-256 of each file above
    COMPLETE               marker, written last; contains the SHA-256 of checksums.json

Earlier versions wrote one moving average, without its decay, as ema.safetensors.

The folder is written under a temporary name and then renamed. No random state is stored: training
computes it from (seed, position, rank).
"""

import json
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.files import atomic_folder, sha256
from fractal_model.common.strict import NotNegativeInt, StrictModel
from fractal_model.common.validation import read_json
from fractal_model.config.model import ModelConfig
from fractal_model.config.serving import ServingConfig
from fractal_model.config.weights import EMA, MODEL, choose_average, parse_weights
from fractal_model.model.fractal import FractalModel
from fractal_model.model.pretrained import CONFIG, SERVING, WEIGHTS, read_config, read_serving
from fractal_model.model.weights import load_weights, save_weights

OPTIMIZER, PROGRESS = "optimizer.pt", "progress.json"
CHECKSUMS, MARKER = "checksums.json", "COMPLETE"
_REQUIRED = (WEIGHTS, CONFIG, PROGRESS)
_CHECKSUMS = TypeAdapter(dict[str, str])
_SUFFIX = ".safetensors"
_AVERAGES = f"{EMA}*{_SUFFIX}"
CHECKPOINT_ONLY = (_AVERAGES, OPTIMIZER, PROGRESS, CHECKSUMS, MARKER)
"""Patterns for `Path.glob` of the files that a checkpoint has and an exported folder has not."""


class Progress(StrictModel):
    """How far a training run had come when its checkpoint was written."""

    size: str
    fingerprint: str
    """Hash of everything that decides the run: model, recipe, data, version."""
    position: NotNegativeInt
    """Number of images seen, over all workers and epochs."""
    steps: NotNegativeInt
    skipped: tuple[NotNegativeInt, ...] = ()
    """The `position` at which each skipped batch began. A batch is skipped if its loss or gradient
    is not finite."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint folder, read after its checksums were found correct."""

    config: ModelConfig
    weights: dict[str, Tensor]
    progress: Progress
    optimizer: dict[str, Any] | None
    """Optimiser state. None in an imported checkpoint, from which training cannot continue."""
    averages: Mapping[str, dict[str, Tensor]] = field(default_factory=dict)
    """Moving averages of the weights by name, such as `ema-0.999`. In a checkpoint of an earlier
    version, which does not have the decay, the name is `ema`."""
    serving: ServingConfig | None = None
    """Weights and sampling settings that belong to the model; None if the checkpoint has none."""

    def build_model(self, weights: str | None = None, *, mark: str = "") -> FractalModel:
        """Build the model in evaluation mode, with the trained weights (`model`) or with the moving
        average that `weights` names. None: those that `serving` names, or else the trained ones.
        FractalError: the checkpoint has no such average, or `ema` could be several; the message
        puts `mark` before each name that it offers."""
        if weights is None:
            weights = MODEL if self.serving is None else self.serving.weights
        state = self.weights
        if weights != MODEL:
            weights = _find_average(weights, tuple(self.averages), mark)
            state = self.averages[weights]
        model = FractalModel(self.config)
        model.load_state_dict(state)
        if self.serving is not None:
            model.serving = self.serving.model_copy(update={"weights": weights})
        return model.eval()


def _find_average(weights: str, averages: tuple[str, ...], mark: str = "") -> str:
    try:
        return choose_average(weights, averages, mark)
    except ValueError as error:
        way_out = "" if averages else ": use the weights themselves, or train with ema_decays"
        raise FractalError(f"in the checkpoint {error}{way_out}") from error


def save_checkpoint(
    folder: Path,
    *,
    model: FractalModel,
    optimizer: dict[str, Any] | None,
    progress: Progress,
    averages: Mapping[str, Mapping[str, Tensor]] | None = None,
    serving: ServingConfig | None = None,
) -> None:
    """Write a checkpoint to the new `folder`, which appears only when the checkpoint is complete.
    `averages` has the moving averages of the weights by name, such as `ema-0.999`. `serving` has
    the weights and settings to sample with. If `optimizer` is None, training cannot continue from
    the checkpoint. FractalError: the disk is full or not writable."""
    with atomic_folder(folder, "the checkpoint") as partial:
        save_weights(model.state_dict(), partial / WEIGHTS)
        for name, average in (averages or {}).items():
            save_weights(average, partial / f"{name}{_SUFFIX}")
        _write_text(partial / CONFIG, model.config.model_dump_json(indent=1))
        _write_text(partial / PROGRESS, progress.model_dump_json(indent=1))
        if serving is not None:
            _write_text(partial / SERVING, serving.model_dump_json(indent=1))
        if optimizer is not None:
            torch.save(optimizer, partial / OPTIMIZER)
        _seal(partial, {file.name: sha256(file) for file in sorted(partial.iterdir())})


def copy_for_sampling(checkpoint: Path, folder: Path) -> None:
    """Copy a checkpoint to the new `folder` without its sampling settings and its optimiser state,
    which is the only pickle. FractalError: the checkpoint is damaged, or the disk is full."""
    verify_checkpoint(checkpoint)
    sums = json.loads((checkpoint / CHECKSUMS).read_text())
    for name in (OPTIMIZER, SERVING):
        sums.pop(name, None)
    with atomic_folder(folder, "a copy of the checkpoint") as partial:
        for name in sums:
            shutil.copyfile(checkpoint / name, partial / name)
        _seal(partial, sums)


def _seal(folder: Path, checksums: dict[str, str]) -> None:
    """Write the `checksums` of the files to CHECKSUMS, then the marker. The marker comes last,
    because a folder with it counts as complete. `ray_train/upload.py` does the same."""
    _write_text(folder / CHECKSUMS, json.dumps(checksums, indent=1))
    _write_text(folder / MARKER, sha256(folder / CHECKSUMS))


def load_checkpoint(folder: Path) -> Checkpoint:
    """Check the marker and the checksums of a checkpoint, then read it. FractalError: the
    checkpoint is missing, damaged or written by another version, or has more than plain data."""
    verify_checkpoint(folder)
    optimizer = folder / OPTIMIZER
    try:
        config = read_config(folder)
        expected = FractalModel.without_memory(config).state_dict()
        return Checkpoint(
            config=config,
            weights=load_weights(folder / WEIGHTS, expected),
            progress=read_json(folder / PROGRESS, Progress, "the progress of a training"),
            optimizer=_load_optimizer(optimizer) if optimizer.is_file() else None,
            averages={
                name: load_weights(folder / f"{name}{_SUFFIX}", expected)
                for name in average_names(folder)
            },
            serving=read_serving(folder),
        )
    except FractalError as error:
        raise FractalError(
            f"the checkpoint {folder} is refused: {error}; use an earlier checkpoint or train again"
        ) from error


def average_names(folder: Path) -> tuple[str, ...]:
    """Names of the moving averages in a checkpoint's folder, sorted, such as `ema-0.999`."""
    return tuple(sorted(file.name.removesuffix(_SUFFIX) for file in folder.glob(_AVERAGES)))


def require_weights(folder: Path, weights: str) -> None:
    """Check that the checkpoint in `folder` has these weights: `model` or the name of a moving
    average. FractalError: see `Checkpoint.build_model`."""
    if weights != MODEL:
        _find_average(weights, average_names(folder))


def _load_optimizer(file: Path) -> dict[str, Any]:
    try:
        state = torch.load(file, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise FractalError(
            f"{OPTIMIZER} contains more than plain tensors and numbers; do not use a checkpoint "
            f"from this source"
        ) from error
    except Exception as error:  # A damaged file can cause any error.
        raise FractalError(f"{OPTIMIZER} is damaged: {one_line(error)}") from error
    if not isinstance(state, dict):
        raise FractalError(f"{OPTIMIZER} is damaged: it holds a {type(state).__name__}, not a dict")
    return state


def verify_checkpoint(folder: Path) -> None:
    """Check the marker of a checkpoint, then the checksum of each file. FractalError: the
    checkpoint is missing, incomplete or damaged."""
    if not folder.is_dir():
        raise FractalError(
            f"there is no checkpoint folder {folder}: train first, or check the path"
        )
    if problem := _find_problem(folder):
        raise FractalError(
            f"the checkpoint {folder} is {problem}; use an earlier checkpoint or train again"
        )


def _find_problem(folder: Path) -> str | None:
    """Describe why a checkpoint is incomplete or damaged; None if it is neither."""
    marker, checksums = folder / MARKER, folder / CHECKSUMS
    if not marker.is_file() or not checksums.is_file():
        return f"incomplete, it has no {MARKER} marker: writing it was interrupted"
    if marker.read_bytes() != sha256(checksums).encode():
        return f"damaged: {CHECKSUMS} or {MARKER} has changed"
    try:
        sums = _CHECKSUMS.validate_json(checksums.read_bytes())
    except ValidationError:
        return f"damaged: {CHECKSUMS} is no table of names and checksums"
    extra = sums.keys() - {*_REQUIRED, OPTIMIZER, SERVING}
    if unknown := [name for name in extra if not _is_average(name)]:
        return f"damaged: {CHECKSUMS} names the unknown file {min(unknown)!r}"
    # A file without a checksum would be read unchecked.
    optional = (folder / OPTIMIZER, folder / SERVING, *folder.glob(_AVERAGES))
    present = {file.name for file in optional if file.exists()}
    if unlisted := {*_REQUIRED, *present} - sums.keys():
        return f"damaged: {CHECKSUMS} has no checksum of {min(unlisted)}"
    for name, expected in sums.items():
        file = folder / name
        if not file.is_file():
            return f"damaged: {name} is missing"
        if sha256(file) != expected:
            size = f"{file.stat().st_size} bytes"
            return f"damaged: {name} ({size}) does not match its checksum, truncated or changed"
    return None


def _is_average(file: str) -> bool:
    """True if a moving average is written to a file of this name."""
    name = file.removesuffix(_SUFFIX)
    try:
        return name not in (file, MODEL) and parse_weights(name) == name
    except ValueError:
        return False


def _write_text(file: Path, text: str) -> None:
    with file.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
