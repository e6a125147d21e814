"""Images while they grow: their pixels at one moment, and a picture of it with the recursion.

Decided here: patches that are being generated are outlined in the colour of their level, and pixels
not yet generated are grey, with a grid of the patches of level 1.

Shapes: B images of side S.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fractal_model.config.model import ModelConfig
from fractal_model.generation.pictures import NOT_GENERATED, enlarge
from fractal_model.model.fractal import Rows
from fractal_model.model.patches import unpatchify

GAP = 6
GRID_LINES = (178, 186, 199)
OUTLINES = ((255, 122, 0), (0, 140, 255), (0, 170, 90))
"""Colours of the outlines of patches, for levels 1, 2 and 3; level 4 has the first colour again."""


@dataclass(frozen=True)
class Moment:
    """The B images at one moment of their generation."""

    images: Tensor
    """The images so far, (B, 3, S, S) uint8. The values of hidden pixels have no meaning."""
    hidden: Tensor
    """True where a pixel is hidden, that is, not generated yet; (B, S, S) bool."""
    boxes: tuple[tuple[int, int, Rows], ...]
    """The patches that are being generated, one entry for each level: the level's number, the side
    of its patches in pixels, and the positions of these patches in the images."""

    @property
    def share_done(self) -> float:
        """Share of the pixels of all images that are generated."""
        return 1 - self.hidden.float().mean().item()

    def copy(self) -> "Moment":
        """A moment that keeps its values while the images grow on."""
        return Moment(self.images.clone(), self.hidden.clone(), self.boxes)


class Growth:
    """Observer of a sampler: it calls `on_moment` before the first step and after each iteration of
    the last level above the pixels. The moment's tensors are reused, so copy what is kept."""

    def __init__(
        self, model: ModelConfig, images: int, on_moment: Callable[[Moment], object]
    ) -> None:
        side = model.image_size
        self._last_level = len(model.levels) - 1
        self._images = torch.zeros(images, 3, side, side, dtype=torch.uint8)
        self._hidden = torch.ones(images, side, side, dtype=torch.bool)
        self._boxes: list[tuple[int, int, Rows]] = []
        self._on_moment = on_moment
        self._is_first = True

    def __call__(self, level: int, rows: Rows, hidden: Tensor, canvas: Tensor) -> None:
        rows = Rows(rows.image.cpu(), rows.top.cpu(), rows.left.cpu())
        self._write(rows, hidden.cpu(), canvas.cpu())
        self._boxes = [box for box in self._boxes if box[0] < level]
        if level > 0:
            side = canvas.shape[-1] * round(canvas.shape[1] ** 0.5)
            self._boxes.append((level, side, rows))
        if level == self._last_level or self._is_first:
            self._is_first = False
            self._on_moment(Moment(self._images, self._hidden, tuple(self._boxes)))

    def _write(self, rows: Rows, hidden: Tensor, canvas: Tensor) -> None:
        by_pixel = hidden[:, :, None, None, None].expand(-1, -1, 1, *canvas.shape[-2:])
        patches, hidden = unpatchify(canvas), unpatchify(by_pixel)[:, 0]
        places = rows.pixels(patches.shape[-1])
        self._images.permute(0, 2, 3, 1)[places] = patches.permute(0, 2, 3, 1)
        self._hidden[places] = hidden


def draw_tile(moment: Moment, b: int, scale: int, patch: int) -> Image.Image:
    """Draw image `b` of a moment, enlarged `scale` times, with outlines of the patches being
    generated. Hidden pixels show a grid of squares of side `patch`, in pixels of the image."""
    hidden = enlarge(moment.hidden[b], scale)
    pixels = enlarge(moment.images[b], scale)
    pixels = torch.where(hidden, _background(hidden.shape[-1], patch * scale), pixels)
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    draw = ImageDraw.Draw(picture)
    for level, side, rows in moment.boxes:
        width = max(1, min(4, side * scale // 16))
        for index in (rows.image == b).nonzero().flatten().tolist():
            top, left = rows.top[index].item() * scale, rows.left[index].item() * scale
            corners = (left, top, left + side * scale - 1, top + side * scale - 1)
            draw.rectangle(corners, outline=OUTLINES[(level - 1) % len(OUTLINES)], width=width)
    return picture


def _background(side: int, patch: int) -> Tensor:
    """Return a picture of hidden pixels, (3, side, side): grey with a line every `patch` pixels."""
    along = torch.arange(side) % patch
    lines = (along[:, None] == 0) | (along[None, :] == 0)
    tones = torch.tensor([NOT_GENERATED, GRID_LINES], dtype=torch.uint8)
    return tones[lines.long()].permute(2, 0, 1)


def arrange(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    """Arrange pictures of the same size in rows of `columns`, with white lines between them."""
    rows, step = math.ceil(len(tiles) / columns), tiles[0].width + GAP
    picture = Image.new("RGB", (columns * step + GAP, rows * step + GAP), "white")
    for place, tile in enumerate(tiles):
        picture.paste(tile, (GAP + place % columns * step, GAP + place // columns * step))
    return picture
