"""The random numbers of an image: all drawn beforehand from the image's own seed.

Decided here: every number belongs to a place (a level's patch, a pixel) and not to a moment, so an
image does not depend on the batch it is in, on the number of workers, or on the device.

Shapes: B images of side S; level i has Rᵢ patches an image, of Tᵢ sub-patches each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fractal_model.common.errors import FractalError
from fractal_model.config.model import LevelConfig, ModelConfig

LARGEST_SEED = 2**32 - 1
"""Torch's CPU generator uses 32 bits of its seed; a larger one would alias a smaller."""


@dataclass(frozen=True)
class ImageNoise:
    """Uniform numbers in [0, 1) for a batch of images."""

    pixels: Tensor
    """(B, S², 3), row-major pixels."""
    orders: tuple[Tensor | None, ...]
    """Per level (B, Rᵢ, Tᵢ); sorting them gives a random order. None for an AR level."""
    guides: tuple[Tensor | None, ...]
    """Per level (B, Rᵢ, 3). None where there is no guiding pixel."""

    @classmethod
    def draw(cls, seeds: Sequence[int], config: ModelConfig, device: torch.device) -> ImageNoise:
        """The numbers of the images with these seeds. FractalError: not in 0 … 2³² − 1."""
        wrong = [seed for seed in seeds if not 0 <= seed <= LARGEST_SEED]
        if wrong:
            raise FractalError(f"seed {wrong[0]} of an image is out of range: 0 … {LARGEST_SEED}")
        drawn = [_draw_one(torch.Generator().manual_seed(seed), config) for seed in seeds]
        pixels, orders, guides = zip(*drawn, strict=True)
        return cls(
            pixels=torch.stack(pixels).to(device),
            orders=tuple(_stack(level, device) for level in zip(*orders, strict=True)),
            guides=tuple(_stack(level, device) for level in zip(*guides, strict=True)),
        )

    def to(self, device: torch.device) -> ImageNoise:
        return ImageNoise(
            self.pixels.to(device),
            tuple(level if level is None else level.to(device) for level in self.orders),
            tuple(level if level is None else level.to(device) for level in self.guides),
        )


def patches_per_image(config: ModelConfig, level: LevelConfig) -> int:
    return (config.image_size // level.patch_size) ** 2


def _draw_one(generator: torch.Generator, config: ModelConfig) -> tuple[Tensor, list, list]:
    pixels = torch.rand(config.image_size**2, 3, generator=generator)
    orders, guides = [], []
    for level in config.levels:
        rows = patches_per_image(config, level)
        is_mar = level.generator == "mar"
        orders.append(torch.rand(rows, level.tokens, generator=generator) if is_mar else None)
        guides.append(torch.rand(rows, 3, generator=generator) if level.guiding_pixel else None)
    return pixels, orders, guides


def _stack(tensors: Sequence[Tensor | None], device: torch.device) -> Tensor | None:
    return None if tensors[0] is None else torch.stack(tensors).to(device)


def ranks(scores: Tensor) -> Tensor:
    """(R, T) scores to each entry's place, 0 … T − 1, in its row's ascending order; ties by
    position."""
    return scores.argsort(dim=1, stable=True).argsort(dim=1)


def stream_seed(*key: int) -> int:
    """A 32-bit seed for the stream named by `key`; keys that differ give unrelated streams."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint32)[0])
