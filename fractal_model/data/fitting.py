"""Make a picture of any shape a square: by the crop of ADM, by padding or by squashing."""

from typing import Literal

import PIL.Image
import PIL.ImageOps

from fractal_model.data.adm_crop import PREPROCESSING, center_crop, pixels_of_crop
from fractal_model.data.decoding import WHITE, UnusableImage

Fit = Literal["crop", "pad", "squash"]
"""`crop` cuts the centre out of the picture, `pad` shows all of it between bars of the background
colour, and `squash` changes its proportions."""
CROP: Fit = "crop"


def describe_fit(fit: Fit, background: str = WHITE) -> str:
    """Return the words for manifests. Raise a version when `fit_square` returns other pixels."""
    return {
        "crop": PREPROCESSING,
        "pad": f"Pad version 1: RGB, bicubic to the long side, centred on {background}",
        "squash": "Squash version 1: RGB, bicubic to both sides",
    }[fit]


def fit_square(image: PIL.Image.Image, side: int, fit: Fit, background: str) -> PIL.Image.Image:
    """Return the RGB `image` as a square of `side` pixels. `background` is the colour of the bars
    that `pad` adds. The image has a size that `require_fit` allows."""
    if fit == "pad":
        return PIL.ImageOps.pad(image, (side, side), color=background)
    if fit == "squash":
        return image.resize((side, side), PIL.Image.Resampling.BICUBIC)
    return center_crop(image, side)


def is_enlarged(size: tuple[int, int], side: int, fit: Fit) -> bool:
    """True if `fit_square` enlarges an image of `size` (width, height)."""
    return (max(size) if fit == "pad" else min(size)) < side


def require_fit(size: tuple[int, int], side: int, fit: Fit) -> None:
    """Raise UnusableImage if an image of `size` (width, height) is too long for a square: for the
    crop it would have more pixels than Pillow allows, between bars it would vanish."""
    width, height = size
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if fit == "crop" and limit is not None and pixels_of_crop(size, side) > limit:
        raise UnusableImage(
            f"{width} × {height} pixels: resizing it for the crop needs more than {limit:,} pixels"
        )
    if fit == "pad" and round(min(size) / max(size) * side) == 0:
        raise UnusableImage(f"{width} × {height} pixels: too narrow to be seen at {side} pixels")
