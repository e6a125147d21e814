"""What the bits of a likelihood are paid for: colours, and the guiding pixels of each level."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fractal_model.data.loader import read_batch
from fractal_model.data.order import epoch_permutation
from fractal_model.data.prepared import PreparedSplit
from fractal_model.model.fractal import NO_CLASS, FractalModel
from fractal_model.model.likelihood import mask_seeds, part_names, pass_bits_by_part
from fractal_model.parts import MapParts, Work, in_this_process

IMAGES, AT_ONCE = 256, 8
"""As many tell the shares well: the likelihood itself is of all images."""


def likelihood_by_level(
    model: FractalModel,
    split: PreparedSplit,
    *,
    passes: int,
    seed: int,
    images: int = IMAGES,
    map_parts: MapParts = in_this_process,
) -> dict[str, float]:
    """Part to bits per dimension, unconditional; together they are the mean likelihood of
    `images` images of the split, a fixed random choice (all where there are fewer). FractalError:
    not even one image fits the memory."""
    chosen = epoch_permutation(0, 0, len(split))[:images].tolist()
    start = partial(_work, model, split, chosen, passes, seed)
    bits = torch.cat([rows for _, rows in map_parts(start, len(chosen), largest=AT_ONCE)])
    return dict(zip(part_names(model.config), bits.mean(0).tolist(), strict=True))


def _work(
    model: FractalModel,
    split: PreparedSplit,
    chosen: list[int],
    passes: int,
    seed: int,
    device: torch.device,
) -> Work:
    model = model.to(device)

    def work(part: range) -> Tensor:
        pixels, labels, indices = read_batch(split, chosen[part.start : part.stop])
        seeds = mask_seeds(seed, indices.tolist())
        labels = torch.full_like(labels, NO_CLASS).to(device)
        bits = pass_bits_by_part(model, pixels.to(device), seeds, passes=passes, labels=labels)
        return bits.mean(1)

    return work
