"""Decode one raw image, make it the square of the data set, and count its properties."""

import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
from pydantic import BaseModel

from fractal_model.data.decoding import (
    WHITE,
    Decoded,
    UnusableImage,
    decode,
    decode_as_adm,
    describe_reading,
    open_picture,
)
from fractal_model.data.fitting import (
    CROP,
    Fit,
    describe_fit,
    fit_square,
    is_enlarged,
    require_fit,
)
from fractal_model.data.srgb import Profile

_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
_SUFFIXES = {"JPEG": _JPEG, "MPO": (*_JPEG, ".mpo"), "PNG": (".png",)}
"""File name endings by format. MPO is a JPEG file with several pictures; many cameras write it."""
_TURNED = range(2, 9)
"""EXIF orientations that are not upright."""


@dataclass(frozen=True)
class Rendering:
    """How raw images become squares of RGB pixels."""

    as_adm: bool = False
    """True if the images are decoded as ADM decodes them, which is so for ImageNet."""
    background: str = WHITE
    """Colour on which transparent pixels are laid, and of the bars of `pad`."""
    fit: Fit = CROP

    def describe(self) -> str:
        """Return the words for manifests."""
        fit = describe_fit(self.fit, self.background)
        return fit if self.as_adm else f"{describe_reading(self.background)}; {fit}"


class RawCounts(BaseModel):
    """Numbers of raw images by format, mode, size and other properties."""

    formats: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    """Numbers of images by Pillow's mode, such as L for grey, before the conversion to RGB."""
    short_sides: Counter[str] = Counter()
    """Numbers of images by the length of their short side before the crop, in pixels."""
    exif_rotated: int = 0
    exif_unreadable: int = 0
    misnamed: int = 0
    """Number of images whose name has the ending of another format."""
    converted: int = 0
    """Number of images whose colours were converted to sRGB by their ICC profiles."""
    profile_unreadable: int = 0
    """Number of images whose ICC profile was ignored: broken, or for another colour space."""
    laid_on: Counter[str] = Counter()
    """Numbers of images with transparent parts, by the colour on which these were laid."""
    fits: Counter[str] = Counter()
    """Numbers of images by the way in which they became squares: crop, pad or squash."""
    enlarged: int = 0
    """Number of images that were enlarged, because they are smaller than the data set's."""
    several_frames: int = 0
    """Number of images with several frames or pages. Only the first frame or page was taken."""

    def add(
        self,
        image: PIL.Image.Image,
        decoded: Decoded,
        name: str,
        resolution: int,
        rendering: Rendering,
    ) -> None:
        """Count the raw `image`. `decoded` is the result of decoding it, `name` its file name. It
        becomes a square of `resolution` pixels by `rendering`."""
        self.formats[str(image.format)] += 1
        self.modes[image.mode] += 1
        self.short_sides[str(min(image.size))] += 1
        self.exif_unreadable += decoded.orientation is None
        self.exif_rotated += decoded.orientation in _TURNED
        self.converted += decoded.profile is Profile.APPLIED
        self.profile_unreadable += decoded.profile is Profile.UNREADABLE
        if decoded.composited:
            self.laid_on[rendering.background] += 1
        self.fits[rendering.fit] += 1
        self.enlarged += is_enlarged(image.size, resolution, rendering.fit)
        self.several_frames += _has_several_frames(image)
        suffix, fitting = Path(name).suffix.lower(), _SUFFIXES.get(str(image.format), ())
        is_known = any(suffix in endings for endings in _SUFFIXES.values())
        self.misnamed += is_known and suffix not in fitting


def prepare_image(
    content: bytes,
    name: str,
    resolution: int,
    counts: RawCounts,
    rendering: Rendering = Rendering(),
) -> PIL.Image.Image:
    """Decode the raw image `content`, add it to `counts`, and return it as an RGB square of
    `resolution` pixels, made by `rendering`. `name` is its file name. UnusableImage: it is empty,
    damaged, of an unknown format, too narrow, or has too many pixels before or during the crop."""
    if not content:
        raise UnusableImage("the file is empty")
    # `_decode` frees the opened file before the crop, because decoders may hold several copies.
    rgb = _decode(content, name, resolution, counts, rendering)
    return fit_square(rgb, resolution, rendering.fit, rendering.background)


def _decode(
    content: bytes, name: str, resolution: int, counts: RawCounts, rendering: Rendering
) -> PIL.Image.Image:
    with open_picture(io.BytesIO(content)) as opened:
        require_fit(opened.size, resolution, rendering.fit)
        as_adm = rendering.as_adm
        decoded = decode_as_adm(opened) if as_adm else decode(opened, rendering.background)
        counts.add(opened, decoded, name, resolution, rendering)
    return decoded.rgb


def _has_several_frames(image: PIL.Image.Image) -> bool:
    """True if a file has several frames, even if the later ones are damaged."""
    try:
        return getattr(image, "is_animated", False)
    except Exception:  # Some decoders read the next frame here, and it may be damaged.
        return True
