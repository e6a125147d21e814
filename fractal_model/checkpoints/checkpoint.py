"""The checkpoint: a folder that is complete or does not exist, and that no pickle can enter.

    model.safetensors   weights
    ema.safetensors     their moving average, where training keeps one
    config.json         the model's configuration
    optimizer.pt        optimiser state, a torch file that loads with weights_only=True; absent
                        where a model was imported, and in the registry
    progress.json       position in images, size, fingerprint of the run
    checksums.json      SHA-256 of each of these
    COMPLETE            written last; holds the SHA-256 of checksums.json

It is written beside its place, then renamed. The random state of training is a pure function of
(seed, position, rank), so the position restores it.
"""

import json
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.files import atomic_folder, sha256
from fractal_model.common.strict import StrictModel
from fractal_model.config.model import ModelConfig
from fractal_model.model.fractal import FractalModel
from fractal_model.model.pretrained import CONFIG, WEIGHTS
from fractal_model.model.weights import save_weights

OPTIMIZER, PROGRESS = "optimizer.pt", "progress.json"
EMA_WEIGHTS = "ema.safetensors"
CHECKSUMS, MARKER = "checksums.json", "COMPLETE"
CHECKPOINT_ONLY = (EMA_WEIGHTS, OPTIMIZER, PROGRESS, CHECKSUMS, MARKER)
"""Files that an exported model does not have."""


class Progress(StrictModel):
    """How far a run has come."""

    size: str
    fingerprint: str
    """Of everything that decides the run: model, recipe, data, version."""
    position: int
    """Images seen, over all workers and epochs."""
    steps: int
    skipped: tuple[int, ...] = ()
    """Positions of the batches that were left out, as they were not finite."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, read and checked."""

    config: ModelConfig
    weights: dict[str, Tensor]
    progress: Progress
    optimizer: dict[str, Any] | None
    """None in an imported checkpoint: training cannot go on from it."""
    ema: dict[str, Tensor] | None = None
    """The weights' moving average; None where training kept none."""

    def build_model(self, *, averaged: bool = False) -> FractalModel:
        """The model with its weights, or with their moving average. FractalError: there is none."""
        weights = self.ema if averaged else self.weights
        if weights is None:
            raise FractalError(
                "the checkpoint has no moving average of its weights: take the weights "
                "themselves, or train with ema_decay above 0"
            )
        model = FractalModel(self.config)
        model.load_state_dict(weights)
        return model.eval()


def save_checkpoint(
    folder: Path,
    *,
    model: FractalModel,
    optimizer: dict[str, Any] | None,
    progress: Progress,
    ema: FractalModel | None = None,
) -> None:
    """Write beside `folder`, then rename; `optimizer` is None where training cannot go on.
    FractalError: the disk is full; nothing that was complete before is touched."""
    with atomic_folder(folder, "the checkpoint") as partial:
        save_weights(model.state_dict(), partial / WEIGHTS)
        if ema is not None:
            save_weights(ema.state_dict(), partial / EMA_WEIGHTS)
        _write_text(partial / CONFIG, model.config.model_dump_json(indent=1))
        _write_text(partial / PROGRESS, progress.model_dump_json(indent=1))
        if optimizer is not None:
            torch.save(optimizer, partial / OPTIMIZER)
        _seal(partial, {file.name: sha256(file) for file in sorted(partial.iterdir())})


def copy_for_sampling(checkpoint: Path, folder: Path) -> None:
    """Copy a checkpoint to the new `folder` without the optimiser state: it can be sampled and
    measured, and none of its files is a pickle. FractalError: it is damaged."""
    verify_checkpoint(checkpoint)
    sums = json.loads((checkpoint / CHECKSUMS).read_text())
    sums.pop(OPTIMIZER, None)
    with atomic_folder(folder, "a copy of the checkpoint") as partial:
        for name in sums:
            shutil.copyfile(checkpoint / name, partial / name)
        _seal(partial, sums)


def _seal(folder: Path, checksums: dict[str, str]) -> None:
    # An upload to an object store takes the marker away and writes it last: `ray_train/upload.py`.
    _write_text(folder / CHECKSUMS, json.dumps(checksums, indent=1))
    _write_text(folder / MARKER, sha256(folder / CHECKSUMS))


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint after checking marker and checksums. FractalError names what is damaged."""
    verify_checkpoint(folder)
    optimizer, ema = None, folder / EMA_WEIGHTS
    try:
        if (folder / OPTIMIZER).is_file():
            optimizer = torch.load(folder / OPTIMIZER, weights_only=True, map_location="cpu")
        return Checkpoint(
            config=ModelConfig.model_validate_json((folder / CONFIG).read_text()),
            weights=load_file(folder / WEIGHTS),
            progress=Progress.model_validate_json((folder / PROGRESS).read_text()),
            optimizer=optimizer,
            ema=load_file(ema) if ema.is_file() else None,
        )
    except pickle.UnpicklingError as error:
        raise FractalError(
            f"the checkpoint {folder} is refused: {OPTIMIZER} holds something other than plain "
            f"tensors and numbers; do not use a checkpoint from this source"
        ) from error
    except (ValidationError, SafetensorError, RuntimeError) as error:
        raise FractalError(
            f"the checkpoint {folder} was written by another version: {one_line(error)}"
        ) from error


def verify_checkpoint(folder: Path) -> None:
    """Check the marker, then every checksum. FractalError: missing, incomplete or damaged."""
    if not folder.is_dir():
        raise FractalError(
            f"there is no checkpoint folder {folder}: train first, or check the path"
        )
    if problem := _problem(folder):
        raise FractalError(
            f"the checkpoint {folder} is {problem}; use an earlier checkpoint or train again"
        )


def _problem(folder: Path) -> str | None:
    """Why a checkpoint is not whole; None if it is."""
    marker, checksums = folder / MARKER, folder / CHECKSUMS
    if not marker.is_file() or not checksums.is_file():
        return f"incomplete, it has no {MARKER} marker: writing it was interrupted"
    if marker.read_bytes() != sha256(checksums).encode():
        return f"damaged: {CHECKSUMS} changed or {MARKER} did"
    for name, expected in json.loads(checksums.read_text()).items():
        file = folder / name
        if not file.is_file():
            return f"damaged: {name} is missing"
        if sha256(file) != expected:
            size = f"{file.stat().st_size} bytes"
            return f"damaged: {name} ({size}) does not have its checksum, truncated or changed"
    return None


def _write_text(file: Path, text: str) -> None:
    with file.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
