"""Decode one raw image, crop it to the square of the data set, and count its properties."""

import io
from collections import Counter
from pathlib import Path

import PIL.Image
from pydantic import BaseModel

from fractal_model.data.adm_crop import center_crop, pixels_of_crop
from fractal_model.data.decoding import Decoded, UnusableImage, decode, decode_as_adm, open_picture
from fractal_model.data.srgb import Profile

_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
_SUFFIXES = {"JPEG": _JPEG, "MPO": (*_JPEG, ".mpo"), "PNG": (".png",)}
"""File name endings by format. MPO is a JPEG file with several pictures; many cameras write it."""
_TURNED = range(2, 9)
"""EXIF orientations that are not upright."""


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
    composited: int = 0
    """Number of images with transparent parts, which were laid on white."""
    several_frames: int = 0
    """Number of images with several frames or pages. Only the first frame or page was taken."""

    def add(self, image: PIL.Image.Image, decoded: Decoded, name: str) -> None:
        """Count the raw `image`. `decoded` is the result of decoding it, `name` its file name."""
        self.formats[str(image.format)] += 1
        self.modes[image.mode] += 1
        self.short_sides[str(min(image.size))] += 1
        self.exif_unreadable += decoded.orientation is None
        self.exif_rotated += decoded.orientation in _TURNED
        self.converted += decoded.profile is Profile.APPLIED
        self.profile_unreadable += decoded.profile is Profile.UNREADABLE
        self.composited += decoded.composited
        self.several_frames += _has_several_frames(image)
        suffix, fitting = Path(name).suffix.lower(), _SUFFIXES.get(str(image.format), ())
        is_known = any(suffix in endings for endings in _SUFFIXES.values())
        self.misnamed += is_known and suffix not in fitting

    def count_enlarged(self, resolution: int) -> int:
        """Return the number of images whose short side is below `resolution` pixels, so the crop
        enlarges them."""
        return sum(images for side, images in self.short_sides.items() if int(side) < resolution)


def prepare_image(
    content: bytes, name: str, resolution: int, counts: RawCounts, *, as_adm: bool = False
) -> PIL.Image.Image:
    """Decode the raw image `content`, add it to `counts`, and return its RGB crop, `resolution`
    pixels wide and high. `name` is its file name. With `as_adm`, decode as ADM does. UnusableImage:
    it is empty, damaged, of an unknown format, or has too many pixels before or during the crop."""
    if not content:
        raise UnusableImage("the file is empty")
    # `_decode` frees the opened file before the crop, because decoders may hold several copies.
    return center_crop(_decode(content, name, resolution, counts, as_adm), resolution)


def _decode(
    content: bytes, name: str, resolution: int, counts: RawCounts, as_adm: bool
) -> PIL.Image.Image:
    with open_picture(io.BytesIO(content)) as opened:
        _require_small_crop(opened.size, resolution)
        decoded = decode_as_adm(opened) if as_adm else decode(opened)
        counts.add(opened, decoded, name)
    return decoded.rgb


def _has_several_frames(image: PIL.Image.Image) -> bool:
    """True if a file has several frames, even if the later ones are damaged."""
    try:
        return getattr(image, "is_animated", False)
    except Exception:  # Some decoders read the next frame here, and it may be damaged.
        return True


def _require_small_crop(size: tuple[int, int], resolution: int) -> None:
    """Raise UnusableImage if an image of `size` (width, height) would have more pixels than Pillow
    allows when its short side is resized to `resolution` pixels. This happens if one side is much
    longer than the other."""
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels_of_crop(size, resolution) > limit:
        width, height = size
        raise UnusableImage(
            f"{width} × {height} pixels: resizing it for the crop needs more than {limit:,} pixels"
        )
