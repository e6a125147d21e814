"""Pictures of images: a grid, enlarged without smoothing, as PNG."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

TILE_PIXELS = 64


def png_bytes(image: Tensor) -> bytes:
    """(3, H, W) uint8 to a PNG file's bytes."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(file, "PNG")
    return file.getvalue()


def sample_grid(images: Tensor, labels: Tensor, *, per_class: int) -> Tensor:
    """One row a class with its first `per_class` images; small ones enlarged to about 64 px."""
    rows = [images[labels == label][:per_class] for label in labels.unique()]
    return image_grid(torch.cat(rows), per_class)


def image_grid(images: Tensor, columns: int) -> Tensor:
    """(N, 3, S, S) uint8 row by row; small ones enlarged to about 64 px."""
    enlarge = max(1, TILE_PIXELS // images.shape[-1])
    tiles = images.repeat_interleave(enlarge, -1).repeat_interleave(enlarge, -2)
    return make_grid(tiles, nrow=columns, padding=2, pad_value=255)


def save_png(image: Tensor, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(png_bytes(image))
    return file
