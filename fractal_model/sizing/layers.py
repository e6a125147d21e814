"""Propose the levels, widths and blocks of a model.

Decided here: patches shrink by about 4 from level to level, and level 0 has at most 16 × 16
sub-patches, as in the paper: 64, 4, 1 and 256, 16, 4, 1. The rungs of the ladder go from the
measured size `digits` to the published sizes. Each level is half as wide as the one above it.
Levels are MAR, as in the largest published sizes, or AR for small images on a machine without GPUs.
"""

import math
from itertools import pairwise
from typing import NamedTuple

from fractal_model.common.errors import FractalError
from fractal_model.config.architecture import Architecture
from fractal_model.config.model import Generator
from fractal_model.sizing.choices import Choice, Entry, values

MOST_ON_A_SIDE = 16
"""Largest number of sub-patches along the image's side in level 0, where a divisor allows it."""
_GENERATOR_REASONS: dict[Generator, str] = {
    "ar": "better than mar with few images; faster on a CPU at 64 px",
    "mar": "drawn in fewer iterations than ar",
}
_USUAL_FACTOR, _LARGEST_FACTOR = 4, MOST_ON_A_SIDE


class Rung(NamedTuple):
    """Width and blocks of level 0, blocks of the second level and of each further one, width and
    blocks of the pixel network, and the largest number of training images for which a wider model
    is not considered."""

    width: int
    blocks: tuple[int, int, int]
    pixel_width: int
    pixel_blocks: int
    most_images: float


LADDER = (
    Rung(128, (4, 2, 1), 32, 1, 1_000),  # as digits
    Rung(192, (5, 2, 2), 32, 1, 3_000),
    Rung(256, (6, 3, 2), 64, 2, 10_000),
    Rung(384, (8, 4, 2), 64, 2, 50_000),
    Rung(512, (12, 4, 3), 64, 2, 200_000),
    Rung(768, (24, 6, 3), 64, 2, 1_000_000),  # nearly as mar-b
    Rung(1024, (32, 8, 4), 128, 3, math.inf),  # as mar-64
)


def propose_patch_sizes(side: int) -> tuple[int, ...]:
    """Patch sizes for images of `side` pixels, from the image down to the pixel: by factors near 4,
    until level 0 has at most 16 sub-patches on a side. A side without such factors gives few, large
    levels; a prime side gives one level. FractalError: the side is 1."""
    if side < 2:
        raise FractalError(
            "images of 1 px have no patches: register the data set with a resolution of 2 or more"
        )
    sizes, rest = [1], side
    while rest > MOST_ON_A_SIDE or len(sizes) == 1:
        factors = [f for f in range(2, _LARGEST_FACTOR + 1) if rest % f == 0 and rest > f]
        if not factors:
            break
        # Level 0 keeps 4 sub-patches on a side where it can, and no fewer than the level below.
        large = [f for f in factors if rest // f >= min(f, _USUAL_FACTOR)] or factors[:1]
        wide = [f for f in large if rest // f >= _USUAL_FACTOR] or large
        factor = min(wide, key=lambda f: abs(math.log(f / _USUAL_FACTOR)))
        sizes.append(sizes[-1] * factor)
        rest //= factor
    return (side, *reversed(sizes))


def propose_layers(rung: Rung, side: int, classes: int, generator: Generator) -> Entry:
    """The entry of `models` for images of `side` px, with the widths of `rung` and levels of one
    kind."""
    patch_sizes = propose_patch_sizes(side)
    levels = len(patch_sizes) - 1
    widths = [max(32, rung.width >> i) for i in range(levels)]
    blocks = [rung.blocks[min(i, 2)] for i in range(levels)]
    heads = [width // (32 if width < 256 else 64) for width in widths]
    grids = " and ".join(f"{a // b} × {a // b}" for a, b in pairwise(patch_sizes))
    return {
        "patch_sizes": Choice(list(patch_sizes), f"{grids} sub-patches each"),
        "widths": Choice([*widths, rung.pixel_width], "halved from level to level"),
        "blocks": Choice([*blocks, rung.pixel_blocks], "most of them at the top, as published"),
        "heads": Choice([*heads, max(1, rung.pixel_width // 32)], "32 or 64 elements each"),
        "generators": Choice([generator] * levels, _GENERATOR_REASONS[generator]),
        **_propose_conditions(generator, levels),
        "num_classes": Choice(classes, "the data set's"),
        "dropout": Choice(
            0.0 if rung.width <= 192 else 0.1,
            "as digits: the model is small" if rung.width <= 192 else "as published",
        ),
    }


def _propose_conditions(generator: Generator, levels: int) -> Entry:
    if generator == "ar":
        return {"conditions": Choice(1, "ar has no others"), "guiding_pixel": Choice(False)}
    return {
        "conditions": Choice(5, "own and four neighbours', as published"),
        "guiding_pixel": Choice(levels > 2, "published for three levels, not two"),
    }


def reuse_layers(name: str, row: Architecture, side: int, classes: int) -> Entry:
    """The entry of `models` with the architecture `row` of the size `name`, for other classes.
    FractalError: it is for images of another side."""
    if row.patch_sizes[0] != side:
        raise FractalError(
            f"the size {name} is for images of {row.patch_sizes[0]} px, those of the data set have "
            f"{side} px: choose a size for {side} px, or register the data set with the resolution "
            f"{row.patch_sizes[0]}",
            setting="like",
        )
    kept = row.model_dump(mode="json", exclude_defaults=True) | {"dropout": row.dropout}
    entry = {key: Choice(value, f"as {name}") for key, value in kept.items()}
    return entry | {"num_classes": Choice(classes, "the data set's")}


def large_grid_note(entry: Entry) -> str | None:
    """A remark if level 0 has far more sub-patches than the published sizes; else None."""
    top, below = values(entry)["patch_sizes"][:2]
    if top // below <= 2 * MOST_ON_A_SIDE:
        return None
    return (
        f"{top} px have no divisor that leaves few patches: level 0 has {(top // below) ** 2:,}, "
        f"which is slow; images of {round(top / 16) * 16} px would be much faster"
    )
