"""Images of which a part is known, and the rest is generated (paper, conditional generation).

Decided here: a pixel is known or not. At every level a sub-patch is context from the start when
all its pixels are known; one that is partly known is generated like an unknown one, and its known
pixels are context further down. The guiding pixel of a partly known patch is sampled, for its true
mean colour is not known. No value of an unknown pixel ever reaches the model.

Shapes: B images of side S; level i has Rᵢ patches an image, of Tᵢ sub-patches of side p each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fractal_model.common.errors import FractalError
from fractal_model.config.model import LevelConfig
from fractal_model.model.patches import patchify


@dataclass(frozen=True)
class KnownPixels:
    """The known pixels of the images of a batch."""

    images: Tensor
    """(B, 3, S, S) uint8; pixels outside the mask are not looked at."""
    mask: Tensor
    """(B, S, S) bool, true where the pixel is known."""

    def to(self, device: torch.device) -> KnownPixels:
        return KnownPixels(self.images.to(device), self.mask.to(device))

    def repeat(self, count: int) -> KnownPixels:
        """The known pixels of one image as those of each of `count` images."""
        return KnownPixels(self.images.expand(count, -1, -1, -1), self.mask.expand(count, -1, -1))

    def require(self, count: int, size: int) -> None:
        """FractalError: these are not `count` images of side `size` with their masks."""
        expected = ((count, 3, size, size), (count, size, size))
        shapes = (tuple(self.images.shape), tuple(self.mask.shape))
        types = (self.images.dtype, self.mask.dtype)
        if shapes != expected or types != (torch.uint8, torch.bool):
            raise FractalError(
                f"known images of shape {shapes[0]} ({types[0]}) with a mask {shapes[1]} "
                f"({types[1]}) given: expected {expected[0]} uint8 and {expected[1]} bool"
            )


@dataclass(frozen=True)
class KnownPatches:
    """The known pixels of a batch, cut into one level's patches."""

    tokens: Tensor
    """(B, Rᵢ, Tᵢ, 3, p, p) uint8, 0 where not known."""
    hidden: Tensor
    """(B, Rᵢ, Tᵢ) bool, true where some pixel is to be generated."""

    @classmethod
    def cut(cls, known: KnownPixels, level: LevelConfig) -> KnownPatches:
        mask = known.mask[:, None]
        tokens = _cut(known.images * mask, level)
        hidden = ~_cut(mask, level).flatten(3).all(-1)
        return cls(tokens, hidden)


def _cut(images: Tensor, level: LevelConfig) -> Tensor:
    """(B, C, S, S) to (B, Rᵢ, Tᵢ, C, p, p)."""
    patches = patchify(images, level.patch_size)
    tokens = patchify(patches.flatten(0, 1), level.sub_patch_size)
    return tokens.view(*patches.shape[:2], *tokens.shape[1:])
