"""Successive halving over the settings of a sampler: which are tried, with how many images.

Source: Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter
optimization", AISTATS 2016. Decided here: a rung keeps one setting in `keep` and gives it `keep`
times the images; images of earlier rungs count, so that only the new ones cost; the first rung is
as large as the budget allows. FIDs are compared within a rung alone, as they depend on the count.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fractal_model.common.errors import FractalError


@dataclass(frozen=True)
class Rung:
    """One round of previews."""

    settings: int
    """How many are compared."""
    per_class: int
    """Images of each class that a setting has at its end."""


def plan_rungs(
    settings: int, *, classes: int, samples: int, keep: int, largest: int
) -> tuple[Rung, ...]:
    """The rounds until one setting is left to be chosen, at most `samples` images in all and at
    most `largest` of a class for a setting. FractalError: a budget that no image a class fits."""
    counts = [settings]
    while -(-counts[-1] // keep) > 1:
        counts.append(-(-counts[-1] // keep))
    growth = [Rung(count, keep**number) for number, count in enumerate(counts)]
    smallest = image_count(growth, classes)
    first = samples // smallest
    if not first:
        raise FractalError(
            f"a budget of {samples:,} images is too small for {settings} settings of {classes:,} "
            f"classes: give {smallest:,} or more, or fewer settings in params.yaml's sweep"
        )
    rungs = [Rung(rung.settings, min(first * rung.per_class, largest)) for rung in growth]
    grown = [after for before, after in pairwise(rungs) if after.per_class > before.per_class]
    return (rungs[0], *grown)


def image_count(rungs: Sequence[Rung], classes: int) -> int:
    """How many are sampled in all of the rungs."""
    before = (0, *(rung.per_class for rung in rungs))
    new = zip(rungs, before, strict=False)
    return classes * sum(rung.settings * (rung.per_class - had) for rung, had in new)


def lowest_indices(values: Sequence[float], count: int) -> tuple[int, ...]:
    """Places of the `count` lowest values, rising; of equal ones the earlier. What is not finite is
    never among them. FractalError: none is finite."""
    finite = [place for place, value in enumerate(values) if math.isfinite(value)]
    if not finite:
        raise FractalError(
            f"none of {len(values)} settings has a FID: give a larger budget of samples, and look "
            f"at the reasons in the sweep's child runs"
        )
    return tuple(sorted(sorted(finite, key=values.__getitem__)[:count]))
