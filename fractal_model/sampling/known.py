"""Known pixels of an image whose other pixels are generated (paper, conditional generation).

Decided here: a pixel is known or not. At every level a sub-patch is context from the start if all
its pixels are known. A partly known sub-patch is generated like an unknown one, and its known
pixels are context at the levels below. The guiding pixel of a partly known patch is sampled,
because its true mean colour is not known. The value of an unknown pixel never reaches the model.

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
    """The known pixels of a batch of images."""

    images: Tensor
    """Images (B, 3, S, S) uint8; pixels outside the mask are not read."""
    mask: Tensor
    """Mask of the known pixels, (B, S, S) bool: True where a pixel is known."""

    def to(self, device: torch.device) -> KnownPixels:
        return KnownPixels(self.images.to(device), self.mask.to(device))

    def repeat(self, count: int) -> KnownPixels:
        """Repeat the known pixels of a single image, for a batch of `count` images."""
        return KnownPixels(self.images.expand(count, -1, -1, -1), self.mask.expand(count, -1, -1))

    def require_shape(self, count: int, size: int) -> None:
        """Raise FractalError if images or mask do not fit `count` images of side `size`."""
        expected = ((count, 3, size, size), (count, size, size))
        shapes = (tuple(self.images.shape), tuple(self.mask.shape))
        types = (self.images.dtype, self.mask.dtype)
        if shapes != expected or types != (torch.uint8, torch.bool):
            raise FractalError(
                f"known images of shape {shapes[0]} ({types[0]}) with a mask {shapes[1]} "
                f"({types[1]}): expected {expected[0]} uint8 and {expected[1]} bool"
            )


@dataclass(frozen=True)
class KnownPatches:
    """The known pixels of a batch, cut into one level's sub-patches."""

    tokens: Tensor
    """Sub-patches of the images, (B, Rᵢ, Tᵢ, 3, p, p) uint8, 0 where a pixel is not known."""
    hidden: Tensor
    """True for a sub-patch with at least one pixel to be generated, (B, Rᵢ, Tᵢ) bool."""

    @classmethod
    def cut(cls, known: KnownPixels, level: LevelConfig) -> KnownPatches:
        """Cut the known pixels of whole images into the sub-patches of `level`."""
        mask = known.mask[:, None]
        tokens = _cut(known.images * mask, level)
        hidden = ~_cut(mask, level).flatten(3).all(-1)
        return cls(tokens, hidden)


def _cut(images: Tensor, level: LevelConfig) -> Tensor:
    """Cut images of C channels (B, C, S, S) into `level`'s sub-patches (B, Rᵢ, Tᵢ, C, p, p)."""
    patches = patchify(images, level.patch_size)
    tokens = patchify(patches.flatten(0, 1), level.sub_patch_size)
    return tokens.view(*patches.shape[:2], *tokens.shape[1:])
