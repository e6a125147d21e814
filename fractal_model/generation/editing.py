"""Editing: a part of an image is kept, the rest is generated (paper, conditional generation).

Decided here: how picture files are read, and which pixels inpainting (a box), outpainting (outside
a box) and uncropping (around the shrunk image) generate. A mask file is white where pixels are
generated and black where they are kept; a mask in the code is True where a pixel is kept.

Shapes: S side of the model's images, N variants.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.files import require_regular_file
from fractal_model.config.sampling import SamplingConfig
from fractal_model.data.decoding import UnusableImage, decode, decode_in_memory, open_picture
from fractal_model.generation.sample_images import PartObserver, collect_images
from fractal_model.model.fractal import FractalModel
from fractal_model.parallel.parts import LARGEST_PART, MapParts, map_in_this_process
from fractal_model.sampling.known import KnownPixels

WHITE = 128
"""Smallest grey value, of 0 … 255, that counts as white in a mask file."""
Source = Path | Image.Image
"""A picture: a file, or a picture in memory."""


def read_image(source: Source, side: int, *, fit: bool = False, name: str = "image") -> Tensor:
    """Read a picture as (3, S, S) uint8, like the pictures of a data set; S is `side`. With
    `fit` the middle square of the picture is scaled to S × S. Errors call the picture `name`.
    FractalError: the picture cannot be read, or without `fit` it is not S × S."""
    picture = _to_side(_read(source, name), source, name, side, fit, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def read_mask(source: Source, side: int, *, fit: bool = False) -> Tensor:
    """Read a picture of a mask as (S, S) bool; S is `side`. A black pixel is kept (True), a white
    or transparent one is generated (False). With `fit` the middle square of the mask is scaled to S
    × S. FractalError: the mask cannot be read, or without `fit` it is not S × S."""
    picture = _to_side(
        _read(source, "mask").convert("L"), source, "mask", side, fit, Image.Resampling.NEAREST
    )
    return torch.from_numpy(np.array(picture) < WHITE)


def box_mask(box: Sequence[int], side: int, *, outside: bool = False) -> Tensor:
    """Return a mask (S, S) bool for a box (top, left, height, width); S is `side`. It is True
    (kept) outside the box. With `outside`, for outpainting, it is True inside the box instead.
    FractalError: the box is empty or not inside the image."""
    top, left, height, width = box
    inside = min(top, left) >= 0 and top + height <= side and left + width <= side
    if min(height, width) < 1 or not inside:
        raise FractalError(
            f"box {top},{left},{height},{width} (top, left, height, width) is "
            f"{'not inside the image' if min(height, width) >= 1 else 'empty'}: choose height and "
            f"width of at least 1, inside the {side} × {side} pixels"
        )
    mask = torch.full((side, side), not outside)
    mask[top : top + height, left : left + width] = outside
    return mask


def uncrop(image: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Shrink the image (3, S, S) to `fraction` of its side and put it in the middle of a black
    image. Return the new image and its mask (S, S), which is True on the shrunk image.
    FractalError: no pixel of the image remains, or no black pixel is around it."""
    side = image.shape[-1]
    inner = round(side * fraction) if 0 < fraction < 1 else 0
    if not 0 < inner < side:
        raise FractalError(
            f"the fraction {fraction:g} of the side is out of range: give one between "
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
    observe: PartObserver | None = None,
) -> Tensor:
    """Generate N variants of `image` (3, S, S), each with its own class and seed, and return them,
    (N, 3, S, S) uint8. Where `mask` (S, S) is True, all variants have the pixels of `image`.
    `map_parts` is the function that runs the work, in parts of at most `largest` variants.
    `progress` receives the number of finished variants. FractalError: `mask` is True everywhere."""
    if bool(mask.all()):
        raise FractalError(
            f"nothing is left to generate, because all pixels are known: give another box or "
            f"fraction, or a mask with white pixels ({WHITE} or more)"
        )
    return collect_images(
        model,
        settings,
        labels,
        seeds,
        progress,
        known=KnownPixels(image[None], mask[None]),
        largest=largest,
        map_parts=map_parts,
        observe=observe,
    )


def require_different(labels: Sequence[int]) -> None:
    """Raise FractalError if a class is given twice, because variants of one class are told apart by
    their seeds, which begin anew with each class."""
    repeated = [label for label in labels if labels.count(label) > 1]
    if repeated:
        raise FractalError(
            f"class {repeated[0]} is given {labels.count(repeated[0])} times: give each class "
            f"once, and ask for more variants of a class"
        )


def _read(source: Source, kind: str) -> Image.Image:
    try:
        if isinstance(source, Image.Image):
            return decode_in_memory(source)
        require_regular_file(source)
        with source.open("rb") as content, open_picture(content) as opened:
            return decode(opened).rgb
    except (OSError, ValueError, UnusableImage) as error:
        raise FractalError(
            f"the {_name(source, kind)} cannot be read ({one_line(error)}): give a picture, for "
            f"example a PNG file"
        ) from error


def _name(source: Source, kind: str) -> str:
    return kind if isinstance(source, Image.Image) else f"{kind} {source}"


def _to_side(
    picture: Image.Image,
    source: Source,
    kind: str,
    side: int,
    fit: bool,
    resampling: Image.Resampling,
) -> Image.Image:
    if fit:
        if min(picture.size) < side:
            from fractal_model.common.console import say

            size = f"{picture.width} × {picture.height} pixels"
            say(f"{_name(source, kind)}: {size}, enlarged to {side}")
        return ImageOps.fit(picture, (side, side), resampling)
    if picture.size != (side, side):
        raise FractalError(
            f"the {_name(source, kind)} is {picture.width} × {picture.height} pixels: this model "
            f"takes {side} × {side}; give one of that size, or let its middle square be cut and "
            f"scaled",
            setting="fit",
        )
    return picture
