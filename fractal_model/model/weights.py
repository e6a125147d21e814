"""Weights of a model: how they differ from what is expected, their checksum, their file."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fractal_model.common.errors import FractalError

_SHOWN = 3


def differences(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> str:
    """Weights of a state dict that are missing, extra or of another shape, the first few of each,
    on one line; "" where all fit. Only names and shapes count: `expected` may lie on `meta`."""
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
    parts = (f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds.items() if names)
    return "; ".join(parts)


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def as_float32(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as models keep them. FractalError: one is no floating-point number, or not finite
    once it is float32, as 1e300 of float64 is not."""
    kept = {}
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise FractalError(f"{name} holds {tensor.dtype}, expected floating-point numbers")
        kept[name] = tensor.detach().float().contiguous()
        if not bool(kept[name].isfinite().all()):
            raise FractalError(f"{name} holds values that are not finite in float32")
    return kept


def weights_checksum(model: nn.Module) -> str:
    """SHA-256 of all names and numbers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_weights(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write a safetensors file that has a new file's usual permissions; the library's own files
    are readable by their owner alone."""
    save_file(dict(tensors), file, metadata={"format": "pt"})
    probe = file.with_name(f".{file.name}.mode")
    probe.touch()
    shutil.copymode(probe, file)
    probe.unlink()
