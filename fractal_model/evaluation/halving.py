"""Successive halving over the settings of a sampler: better settings get more images.

Source: Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter
optimization", AISTATS 2016. Decided here: after each rung, the best 1/`keep` of the settings go on
to the next rung, where each gets `keep` times as many images. A setting keeps its images of earlier
rungs, so that only new images cost time. The first rung is as large as the budget allows. FIDs are
compared only within a rung, because FID depends on the number of images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fractal_model.common.errors import FractalError


@dataclass(frozen=True)
class Rung:
    """One round of a sweep. It compares settings by previews with equal numbers of images."""

    settings: int
    """Number of settings that the rung compares."""
    per_class: int
    """Images that a setting has of each class after the rung, with those of earlier rungs."""


def plan_rungs(
    settings: int, *, classes: int, samples: int, keep: int, largest: int
) -> tuple[Rung, ...]:
    """Return the rungs of a sweep. The first rung compares `settings` settings. Each later rung
    compares the best 1/`keep` of the settings before, until at most `keep` settings are left. All
    rungs together sample at most `samples` images, and a setting has at most `largest` images of
    each of the `classes` classes. A rung without new images is left out. FractalError: `samples` is
    too small even if the first rung has one image of each class."""
    counts = [settings]
    while -(-counts[-1] // keep) > 1:
        counts.append(-(-counts[-1] // keep))
    growth = [Rung(count, keep**number) for number, count in enumerate(counts)]
    smallest = image_count(growth, classes)
    first = samples // smallest
    if not first:
        raise FractalError(
            f"a budget of {samples:,} images is too small for {settings} settings of {classes:,} "
            f"classes: give {smallest:,} or more, or list fewer settings under sweep"
        )
    rungs = [Rung(rung.settings, min(first * rung.per_class, largest)) for rung in growth]
    grown = [after for before, after in pairwise(rungs) if after.per_class > before.per_class]
    return (rungs[0], *grown)


def image_count(rungs: Sequence[Rung], classes: int) -> int:
    """Return how many images, over all `classes` classes, the `rungs` sample together. An image
    that a later rung uses again is counted once."""
    earlier = (0, *(rung.per_class for rung in rungs))
    new = [rung.per_class - count for rung, count in zip(rungs, earlier, strict=False)]
    return classes * sum(rung.settings * count for rung, count in zip(rungs, new, strict=True))


def lowest_indices(values: Sequence[float], count: int) -> tuple[int, ...]:
    """Return the indices of the `count` lowest finite values, sorted by index. If fewer are finite,
    return the indices of all finite values. Of equal values choose the earlier. FractalError: no
    value is finite."""
    finite = [index for index, value in enumerate(values) if math.isfinite(value)]
    if not finite:
        raise FractalError(
            f"none of {len(values)} settings has a FID: give a larger budget of samples; the "
            f"reasons are in the sweep's child runs"
        )
    return tuple(sorted(sorted(finite, key=values.__getitem__)[:count]))
