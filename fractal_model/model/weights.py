"""Whether weights fit a model: their names and shapes, and on one line what does not."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

_SHOWN = 3


def differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What is missing, extra or of another shape, the first few of each; "" where all fits.

    Compares two state dicts; only names and shapes count, so `expected` may lie on `meta`.
    """
    shapes = [
        f"{name} {list(found[name].shape)} instead of {list(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    kinds = {
        "missing": [name for name in expected if name not in found],
        "extra": [name for name in found if name not in expected],
        "of another shape": shapes,
    }
    return "; ".join(
        f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds.items() if names
    )


def _first(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def weights_checksum(model: nn.Module) -> str:
    """SHA-256 of all names and numbers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_weights(tensors: Mapping[str, Tensor], file: Path) -> None:
    """As safetensors, readable for whom other new files are: the library's own are the owner's."""
    save_file(dict(tensors), file, metadata={"format": "pt"})
    probe = file.with_name(f".{file.name}.mode")
    probe.touch()
    shutil.copymode(probe, file)
    probe.unlink()
