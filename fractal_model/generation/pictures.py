"""Pictures made of images: grids and enlargements without smoothing, as PNG."""

import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fractal_model.common.files import atomic_file

TILE_PIXELS = 64
GAP = 2
NOT_GENERATED = (196, 203, 214)
"""Colour of pixels that are not generated yet."""


def png_bytes(image: Tensor) -> bytes:
    """Return the bytes of a PNG file of an image, (3, H, W) uint8."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(file, "PNG")
    return file.getvalue()


def sample_grid(images: Tensor, labels: Tensor, *, per_class: int) -> Tensor:
    """Draw images (N, 3, S, S) uint8 as one picture (3, H, W), with one row for each class in
    `labels` (N,): the first `per_class` images of the class."""
    rows = [images[labels == label][:per_class] for label in labels.unique()]
    return picture_grid(torch.cat(rows), columns=per_class)


def picture_grid(images: Tensor, *, columns: int) -> Tensor:
    """Draw images (N, 3, S, S) uint8 as one picture (3, H, W) in rows of `columns` images. Small
    images are enlarged by a whole factor to at most 64 px. White lines of `GAP` pixels are around
    the images, but not around a single one."""
    tiles = enlarge(images, max(1, TILE_PIXELS // images.shape[-1]))
    if len(tiles) == 1:
        return tiles[0]
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    _, channels, height, width = tiles.shape
    picture = tiles.new_full(
        (channels, rows * (height + GAP) + GAP, columns * (width + GAP) + GAP), 255
    )
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        top, left = row * (height + GAP) + GAP, column * (width + GAP) + GAP
        picture[:, top : top + height, left : left + width] = tile
    return picture


def enlarge(images: Tensor, factor: int) -> Tensor:
    """Enlarge images (..., H, W) by a whole `factor`: a pixel becomes a square of equal pixels."""
    return images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def grey_out(images: Tensor, hidden: Tensor) -> Tensor:
    """Return images (B, 3, S, S) uint8 that are grey where `hidden` (B, S, S) is True."""
    tone = torch.tensor(NOT_GENERATED, dtype=torch.uint8, device=images.device).view(3, 1, 1)
    return torch.where(hidden[:, None], tone, images)


def save_png(image: Tensor, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as partial:
        partial.write_bytes(png_bytes(image))
    return file
