"""Random inputs of a training pass: the masks of MAR levels, and noise in what levels read."""

import torch
from torch import Tensor

from fractal_model.common.devices import copy_to
from fractal_model.config.mask_ratio import MaskRatio, lower_bound
from fractal_model.model.fractal import ContextSource, MaskSource, Rows
from fractal_model.model.likelihood import draw_counts
from fractal_model.model.randomness import ranks

MASK_RATIO_SD = 0.25
"""Standard deviation of the published mask ratio, before it is truncated."""
GUIDE_NOISE_SD = 0.01
"""Standard deviation of the noise that is added to a mean colour, in units of 8-bit values."""


def training_masks(
    tokens: list[int], generator: torch.Generator, mask_ratio: MaskRatio = "published"
) -> MaskSource:
    """Return a function that draws a level's masks: bool (R, T) for R patches of T sub-patches,
    true where masked, on the CPU. `tokens` has T of each level.

    With the published `mask_ratio`, ⌈T · r⌉ random sub-patches of a patch are masked, at least one;
    r is normal with mean 1 and standard deviation 0.25, truncated to 0 … 1. A number f truncates it
    to f … 1. With `uniform`, the number of masked sub-patches is uniform on 1 … T, and the numbers
    of the R patches are spread evenly over this range, which makes the loss vary less. The loss
    stays the mean over all predicted pixels: it weighs a patch by its number of masked sub-patches,
    while the likelihood bound weighs all patches equally."""

    def draw(level: int, rows: Rows) -> Tensor:
        count = len(rows.image)
        if mask_ratio == "uniform":
            masked = draw_counts(generator, count, tokens[level], passes=1)[0]
        else:
            ratio = torch.empty(count)
            low = lower_bound(mask_ratio)
            torch.nn.init.trunc_normal_(
                ratio, mean=1.0, std=MASK_RATIO_SD, a=low, b=1.0, generator=generator
            )
            masked = (ratio * tokens[level]).ceil().clamp(min=1)
        scores = torch.rand(count, tokens[level], generator=generator)
        return ranks(scores) < masked[:, None]

    return draw


def noisy_context(probability: float, generator: torch.Generator) -> ContextSource:
    """Return a function that replaces each of the sub-patches (R, T, 3, p, p) that a level reads,
    with this probability, by the one at the same place of another random row. A single row is
    returned unchanged. The model so learns to continue from a context with mistakes, as it meets
    them when it samples."""

    def replace(sub_patches: Tensor) -> Tensor:
        (count, tokens), device = sub_patches.shape[:2], sub_patches.device
        if count < 2:
            return sub_patches
        is_replaced = torch.rand(count, tokens, generator=generator) < probability
        steps = torch.randint(1, count, (count, tokens), generator=generator)
        row = torch.arange(count)[:, None]
        source = copy_to(device, torch.where(is_replaced, (row + steps) % count, row))
        return sub_patches[source, torch.arange(tokens, device=device)]

    return replace


def training_guides(means: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return two things for the guiding pixels of R patches: the targets of the loss, int64 (R, 3)
    in 0 … 255, and the colours that the level reads, float (R, 3). These are the mean colours
    `means`, unchanged. As published, a target is the mean plus a little noise, rounded, so a mean
    halfway between two values goes up or down at random."""
    noise = copy_to(means.device, torch.randn(means.shape, generator=generator)) * GUIDE_NOISE_SD
    return (means + noise).round().clamp(0, 255).long(), means
