"""What the bits of a likelihood are paid for: colours, and the guiding pixels of each level."""

from __future__ import annotations

import torch

from fractal_model.data.loader import read_batch
from fractal_model.data.order import epoch_permutation
from fractal_model.data.prepared import PreparedSplit
from fractal_model.memory import compute_device
from fractal_model.model.fractal import NO_CLASS, FractalModel
from fractal_model.model.likelihood import mask_seeds, part_names, pass_bits_by_part

IMAGES, AT_ONCE = 256, 8
"""As many tell the shares well: the likelihood itself is of all images."""


def likelihood_by_level(
    model: FractalModel, split: PreparedSplit, *, passes: int, seed: int, images: int = IMAGES
) -> dict[str, float]:
    """Part to bits per dimension, unconditional; together they are the mean likelihood of
    `images` images of the split, a fixed random choice (all where there are fewer)."""
    device = compute_device()
    model = model.to(device)
    chosen = epoch_permutation(0, 0, len(split))[:images].tolist()
    bits = []
    for start in range(0, len(chosen), AT_ONCE):
        pixels, labels, indices = read_batch(split, chosen[start : start + AT_ONCE])
        found = pass_bits_by_part(
            model,
            pixels.to(device),
            mask_seeds(seed, indices.tolist()),
            passes=passes,
            labels=torch.full_like(labels, NO_CLASS).to(device),
        )
        bits.append(found.mean(1).cpu())
    return dict(zip(part_names(model.config), torch.cat(bits).mean(0).tolist(), strict=True))
