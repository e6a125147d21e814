"""Random inputs of a training pass: the masks of MAR levels and the noise of guiding pixels."""

import torch
from torch import Tensor

from fractal_model.model.fractal import MaskSource, Rows
from fractal_model.model.randomness import ranks

MASK_RATIO_SD = 0.25
"""Standard deviation of the mask ratio in training, before it is truncated to 0 … 1."""
GUIDE_NOISE_SD = 0.01
"""Standard deviation of the noise that is added to a mean colour, in units of 8-bit values."""


def training_masks(tokens: list[int], generator: torch.Generator) -> MaskSource:
    """Return a function that draws a level's masks: bool (R, T) for R patches of T sub-patches,
    true where masked. In each patch, ⌈T · r⌉ random sub-patches are masked, at least one; r is
    normal with mean 1 and standard deviation 0.25, truncated to 0 … 1. `tokens` has T of each
    level."""

    def draw(level: int, rows: Rows) -> Tensor:
        count, device = len(rows.image), rows.image.device
        ratio = torch.empty(count)
        torch.nn.init.trunc_normal_(
            ratio, mean=1.0, std=MASK_RATIO_SD, a=0.0, b=1.0, generator=generator
        )
        masked = (ratio * tokens[level]).ceil().clamp(min=1)
        scores = torch.rand(count, tokens[level], generator=generator)
        return (ranks(scores) < masked[:, None]).to(device)

    return draw


def training_guides(means: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return two things for the guiding pixels of R patches: the targets of the loss, int64 (R, 3)
    in 0 … 255, and the colours that the level reads, float (R, 3). These are the mean colours
    `means`, unchanged. As published, a target is the mean plus a little noise, rounded, so a mean
    halfway between two values goes up or down at random."""
    noise = torch.randn(means.shape, generator=generator).to(means.device) * GUIDE_NOISE_SD
    return (means + noise).round().clamp(0, 255).long(), means
