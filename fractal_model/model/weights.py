"""Weights of a model: their differences from the expected ones, their checksum, their file."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fractal_model.common.errors import FractalError, one_line

_MOST_NAMES = 3


def differences(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> str:
    """Describe on one line which `actual` weights are missing, extra or of another shape than in
    `expected`, with the first names; "" if all fit. `expected` may be on torch's `meta` device."""
    shapes = [
        f"{name} {list(actual[name].shape)} instead of {list(expected[name].shape)}"
        for name in expected
        if name in actual and actual[name].shape != expected[name].shape
    ]
    kinds = {
        "missing": [name for name in expected if name not in actual],
        "extra": [name for name in actual if name not in expected],
        "of another shape": shapes,
    }
    parts = (
        f"{len(names)} {kind} ({_first_names(names)})" for kind, names in kinds.items() if names
    )
    return "; ".join(parts)


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:_MOST_NAMES]) + (", …" if len(names) > _MOST_NAMES else "")


def load_weights(file: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read weights from a safetensors file, and return them in float32 by name. Names and shapes
    must be those of `expected`, which may be on torch's `meta` device and then takes no memory.

    FractalError: the file is damaged, does not fit, or float32 cannot hold its values.
    """
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as error:
        raise FractalError(
            f"{file} ({file.stat().st_size} bytes) is damaged or truncated: {one_line(error)}; "
            f"copy or export it again"
        ) from error
    if mismatch := differences(expected, weights):
        raise FractalError(
            f"{file} does not fit the configuration: {mismatch}; copy the whole folder again"
        )
    try:
        return as_float32(weights)
    except FractalError as error:
        raise FractalError(f"{file} cannot be used: {error}; use an earlier checkpoint") from error


def as_float32(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights to float32. FractalError: a tensor is not of a floating-point type, or a
    number is not finite in float32, for example 1e300 in float64."""
    converted = {}
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise FractalError(f"{name} holds {tensor.dtype}, expected floating-point numbers")
        converted[name] = tensor.detach().float().contiguous()
        if not bool(converted[name].isfinite().all()):
            raise FractalError(f"{name} is not finite in float32, expected finite numbers")
    return converted


def weights_checksum(model: nn.Module) -> str:
    """Return the SHA-256 of a model's weights: of all their names, types, shapes and numbers."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha256.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        sha256.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return sha256.hexdigest()


def save_weights(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write weights to a safetensors file with the usual permissions of new files. The library
    alone would let only the owner read it."""
    save_file(dict(tensors), file, metadata={"format": "pt"})
    probe = file.with_name(f".{file.name}.mode")
    probe.touch()
    shutil.copymode(probe, file)
    probe.unlink()
