"""Whether weights fit a model: their names and shapes, and on one line what does not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

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
