"""The random numbers of an image, all drawn from the image's seed before sampling begins.

Decided here: every number belongs to a patch or a pixel, not to a moment of sampling. An image
therefore does not depend on its batch, on the number of workers, or on the device.

Shapes: B images of side S; level i has Rᵢ patches per image and Tᵢ sub-patches per patch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from fractal_model.common.errors import FractalError
from fractal_model.common.strict import LARGEST_SEED
from fractal_model.config.model import LevelConfig, ModelConfig


@dataclass(frozen=True)
class ImageNoise:
    """Uniform random numbers in [0, 1) from which a batch of images is sampled."""

    pixels: Tensor
    """One random number for each channel of each pixel, (B, S², 3), pixels in row-major order."""
    orders: tuple[Tensor | None, ...]
    """For each MAR level, one random number for each sub-patch, (B, Rᵢ, Tᵢ); None for an AR level.
    Sorting the numbers of a patch gives a random order of its sub-patches."""
    guides: tuple[Tensor | None, ...]
    """For each level with guiding pixels, one random number for each channel of a guiding pixel,
    (B, Rᵢ, 3); None for a level without guiding pixels."""

    @classmethod
    def draw(cls, seeds: Sequence[int], config: ModelConfig, device: torch.device) -> Self:
        """Draw each image's numbers from its seed. FractalError: a seed is not in 0 … 2³² − 1."""
        bad = [seed for seed in seeds if not 0 <= seed <= LARGEST_SEED]
        if bad:
            raise FractalError(f"image seed {bad[0]} is out of range: choose 0 … {LARGEST_SEED}")
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def uniform(*shape: int) -> Tensor:
            return torch.stack([torch.rand(shape, generator=g) for g in generators]).to(device)

        pixels = uniform(config.image_size**2, 3)
        orders: list[Tensor | None] = []
        guides: list[Tensor | None] = []
        for level in config.levels:
            rows = patches_per_image(config, level)
            orders.append(uniform(rows, level.tokens) if level.generator == "mar" else None)
            guides.append(uniform(rows, 3) if level.guiding_pixel else None)
        return cls(pixels, tuple(orders), tuple(guides))

    def to(self, device: torch.device) -> Self:
        orders = tuple(level if level is None else level.to(device) for level in self.orders)
        guides = tuple(level if level is None else level.to(device) for level in self.guides)
        return replace(self, pixels=self.pixels.to(device), orders=orders, guides=guides)


def patches_per_image(config: ModelConfig, level: LevelConfig) -> int:
    return (config.image_size // level.patch_size) ** 2


def ranks(scores: Tensor) -> Tensor:
    """Return the rank of each score within its row, 0 for the lowest score to T − 1 for the
    highest. `scores` and result are (R, T). Of two equal scores, the first has the lower rank."""
    return scores.argsort(dim=1, stable=True).argsort(dim=1)


def stream_seed(*key: int) -> int:
    """Derive a 32-bit seed from the numbers `key`. Different keys give independent streams."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint32)[0])
