"""One raw image: from a file's bytes to the prepared crop, or the reason why it cannot be used."""

import io
from collections import Counter
from pathlib import Path

import PIL.Image
from pydantic import BaseModel

from fractal_model.data.adm_crop import center_crop, pixels_of_crop
from fractal_model.data.decoding import Decoded, UnusableImage, decode, decode_as_adm, open_picture

_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
_SUFFIXES = {"JPEG": _JPEG, "MPO": (*_JPEG, ".mpo"), "PNG": (".png",)}
"""MPO is a JPEG file with more pictures behind the first, as many cameras write."""
_TURNED = range(2, 9)
"""Orientations of EXIF that are not upright."""


class RawCounts(BaseModel):
    """What the raw images are like, counted."""

    formats: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    """Pillow's, before the conversion to RGB."""
    short_sides: Counter[str] = Counter()
    """In pixels, before the crop."""
    exif_rotated: int = 0
    exif_unreadable: int = 0
    misnamed: int = 0
    """Images whose name ends like another format."""
    composited: int = 0
    """Images that are transparent in places and were laid on white."""
    several_frames: int = 0
    """Animations and files of several pages, of which the first was taken."""

    def add(self, image: PIL.Image.Image, decoded: Decoded, name: str) -> None:
        """Count an image that was opened and decoded."""
        self.formats[str(image.format)] += 1
        self.modes[image.mode] += 1
        self.short_sides[str(min(image.size))] += 1
        self.exif_unreadable += decoded.orientation is None
        self.exif_rotated += decoded.orientation in _TURNED
        self.composited += decoded.composited
        self.several_frames += _has_several_frames(image)
        suffix, fitting = Path(name).suffix.lower(), _SUFFIXES.get(str(image.format), ())
        known = any(suffix in endings for endings in _SUFFIXES.values())
        self.misnamed += known and suffix not in fitting

    def enlarged(self, resolution: int) -> int:
        """How many images have a short side below the resolution."""
        return sum(images for side, images in self.short_sides.items() if int(side) < resolution)


def prepare_image(
    content: bytes, name: str, resolution: int, counts: RawCounts, *, as_adm: bool = False
) -> PIL.Image.Image:
    """The prepared image, RGB, resolution × resolution, added to `counts`.

    Raises UnusableImage: empty, of no known format, damaged, or too large before or in the crop.
    """
    if not content:
        raise UnusableImage("the file is empty")
    # What was opened is let go of before the crop: a decoder may hold several copies.
    return center_crop(_decoded(content, name, resolution, counts, as_adm), resolution)


def _decoded(
    content: bytes, name: str, resolution: int, counts: RawCounts, as_adm: bool
) -> PIL.Image.Image:
    with open_picture(io.BytesIO(content)) as opened:
        _require_moderate(opened.size, resolution)
        decoded = decode_as_adm(opened) if as_adm else decode(opened)
        counts.add(opened, decoded, name)
    return decoded.rgb


def _has_several_frames(image: PIL.Image.Image) -> bool:
    """True for an animation, also where its further frames are damaged."""
    try:
        return getattr(image, "is_animated", False)
    except Exception:  # a decoder may look for the next frame only now, and raises what it likes
        return True


def _require_moderate(size: tuple[int, int], resolution: int) -> None:
    """Raises UnusableImage when the crop would need more memory than the largest image may."""
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels_of_crop(size, resolution) > limit:
        width, height = size
        raise UnusableImage(
            f"{width} × {height} pixels, whose crop would pass through more than {limit:,}"
        )
