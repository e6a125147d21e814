"""Editing: an image of which a part is kept, the rest generated (paper, conditional generation).

Decided here: how picture files become known pixels, and the masks of inpainting (a box),
outpainting (outside a box) and uncropping (around the shrunk image). In a mask file white is
generated and black is kept; inside the program a mask is true where a pixel is known.

Shapes: S side of the model's images, N variants.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fractal_model.common.console import say
from fractal_model.common.errors import FractalError, one_line
from fractal_model.config.sampling import SamplingConfig
from fractal_model.data.decoding import UnusableImage, decode, open_picture
from fractal_model.generation.sample_images import sample_images
from fractal_model.model.fractal import FractalModel
from fractal_model.parallel.parts import LARGEST_PART, MapParts, map_in_this_process
from fractal_model.sampling.known import KnownPixels

WHITE = 128
"""From here on a grey mask pixel counts as white."""


def read_image(file: Path, side: int, *, fit: bool = False) -> Tensor:
    """(3, S, S) uint8, read as `prepare` reads the pictures of a data set (`data.decoding`).

    `fit` cuts the middle square and scales it. FractalError: unreadable, or of another size.
    """
    picture = _sized(_read(file, "image"), file, "image", side, fit, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def read_mask(file: Path, side: int, *, fit: bool = False) -> Tensor:
    """(S, S) bool, true where known, from a picture: what is white or transparent is generated,
    black is kept."""
    picture = _sized(
        _read(file, "mask").convert("L"), file, "mask", side, fit, Image.Resampling.NEAREST
    )
    return torch.from_numpy(np.array(picture) < WHITE)


def box_mask(box: Sequence[int], side: int, *, outside: bool = False) -> Tensor:
    """(S, S) bool, true where known: all but the box (top, left, height, width), or with `outside`
    the box alone. FractalError: the box is empty or not inside the image."""
    top, left, height, width = box
    inside = min(top, left) >= 0 and top + height <= side and left + width <= side
    if min(height, width) < 1 or not inside:
        raise FractalError(
            f"box {top},{left},{height},{width} (top, left, height, width) is "
            f"{'not inside the image' if min(height, width) >= 1 else 'empty'}: choose height and "
            f"width of at least 1 within 0 … {side} pixels"
        )
    mask = torch.full((side, side), not outside)
    mask[top : top + height, left : left + width] = outside
    return mask


def uncrop(image: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """The image (3, S, S) shrunk to `fraction` of its side in the middle, and its mask (S, S).

    FractalError: nothing of the image, or nothing around it, would be left.
    """
    side = image.shape[-1]
    inner = round(side * fraction) if 0 < fraction < 1 else 0
    if not 0 < inner < side:
        raise FractalError(
            f"uncropping to {fraction:g} of the side is out of range: give a fraction between "
            f"{1 / side:.2g} and {(side - 1) / side:.2g}"
        )
    start = (side - inner) // 2
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    small = picture.resize((inner, inner), Image.Resampling.LANCZOS)
    canvas = torch.zeros_like(image)
    middle = (slice(start, start + inner), slice(start, start + inner))
    canvas[:, *middle] = torch.from_numpy(np.array(small)).permute(2, 0, 1)
    return canvas, box_mask((start, start, inner, inner), side, outside=True)


def edit(
    model: FractalModel,
    settings: SamplingConfig,
    image: Tensor,
    mask: Tensor,
    labels: Tensor,
    seeds: Sequence[int],
    progress: Callable[[int], None] = lambda done: None,
    *,
    largest: int = LARGEST_PART,
    map_parts: MapParts = map_in_this_process,
) -> Tensor:
    """(N, 3, S, S) uint8: one variant of `image` (3, S, S) for each of N classes and seeds; what
    `mask` (S, S) marks as known is the same in all. `progress` gets the number done."""
    known = KnownPixels(image[None], mask[None])
    found, done = image.new_empty(len(labels), *image.shape), 0
    for part, images in sample_images(
        model, settings, labels, seeds, known=known, largest=largest, map_parts=map_parts
    ):
        found[part.start : part.stop] = images
        done += len(part)
        progress(done)
    return found


def _read(file: Path, what: str) -> Image.Image:
    try:
        with file.open("rb") as content, open_picture(content) as opened:
            return decode(opened).rgb
    except (OSError, ValueError, UnusableImage) as error:
        raise FractalError(
            f"the {what} {file} cannot be read ({one_line(error)}): give a picture file, for "
            f"example PNG"
        ) from error


def _sized(
    picture: Image.Image, file: Path, what: str, side: int, fit: bool, resampling: Image.Resampling
) -> Image.Image:
    if fit:
        if min(picture.size) < side:
            say(f"{what} {file}: {picture.width} × {picture.height} pixels, enlarged to {side}")
        return ImageOps.fit(picture, (side, side), resampling)
    if picture.size != (side, side):
        raise FractalError(
            f"the {what} {file} is {picture.width} × {picture.height} pixels: this model takes "
            f"{side} × {side}; give one of that size, or have its middle square cut and scaled",
            setting="fit",
        )
    return picture
