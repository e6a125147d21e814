"""Random inputs of a training pass: the masks of MAR levels and the noise of guiding pixels."""

import torch
from torch import Tensor

from fractal_model.model.fractal import MaskSource, Rows
from fractal_model.model.randomness import ranks

MASK_RATIO_SD = 0.25
GUIDE_NOISE_SD = 0.01


def training_masks(tokens: list[int], generator: torch.Generator) -> MaskSource:
    """Return a function that draws training masks (R, T), True where masked: ⌈T · r⌉ random
    sub-patches of each of R rows. r is normal, mean 1 and standard deviation 0.25, truncated to
    [0, 1]. `tokens` holds T, the number of sub-patches, for each level."""

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
    """Return targets (int64, 0 … 255) and inputs (the exact `means`) of the guiding pixels, (R, 3).
    As published, a little noise decides at random how a target between two values is rounded."""
    noise = torch.randn(means.shape, generator=generator).to(means.device) * GUIDE_NOISE_SD
    return (means + noise).round().clamp(0, 255).long(), means
