"""One raw image: from a file's bytes to the prepared crop, or the reason why it cannot be used.

Decided here: whatever a decoder says of damaged bytes is a reason, not a crash; notes beside the
pixels, such as EXIF, never decide whether an image is used.
"""

import io
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import PIL.Image
from pydantic import BaseModel

from fractal_model.common.errors import one_line
from fractal_model.data.adm_crop import center_crop, pixels_of_crop

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Decoded. Others, such as PostScript, would start other programs."""
_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
_SUFFIXES = {"JPEG": _JPEG, "MPO": (*_JPEG, ".mpo"), "PNG": (".png",)}
"""MPO is a JPEG file with more pictures behind the first, as many cameras write."""
_EXIF_ORIENTATION = 0x0112


class UnusableImage(Exception):
    """An image that is left out. The text is the reason."""


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

    def add(self, image: PIL.Image.Image, name: str) -> None:
        self.formats[str(image.format)] += 1
        self.modes[image.mode] += 1
        self.short_sides[str(min(image.size))] += 1
        if "exif" in image.info:
            self._add_exif(image)
        suffix, fitting = Path(name).suffix.lower(), _SUFFIXES.get(str(image.format), ())
        known = any(suffix in endings for endings in _SUFFIXES.values())
        self.misnamed += known and suffix not in fitting

    def _add_exif(self, image: PIL.Image.Image) -> None:
        try:
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        except Exception:  # its parser raises what it likes; the pixels are intact
            self.exif_unreadable += 1
        else:
            self.exif_rotated += orientation not in (0, 1)


@contextmanager
def decoding_rules() -> Iterator[None]:
    """Around `cropped`: corrupt metadata is no warning, a decompression bomb an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of metadata: ImageNet has corrupt EXIF
        warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
        yield


def cropped(content: bytes, name: str, resolution: int, counts: RawCounts) -> PIL.Image.Image:
    """The prepared image, RGB, resolution × resolution; use it within `decoding_rules`.

    Raises UnusableImage: empty, of no known format, damaged, or too large before or in the crop.
    """
    if not content:
        raise UnusableImage("the file is empty")
    # What was opened is let go of before the crop: a decoder may hold several copies.
    return center_crop(_decoded(content, name, resolution, counts), resolution)


def _decoded(content: bytes, name: str, resolution: int, counts: RawCounts) -> PIL.Image.Image:
    """The image as RGB; the file's own format and mode are added to `counts`."""
    try:
        with PIL.Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            _require_moderate(opened.size, resolution)
            opened.load()
            # `convert` would copy what is RGB already.
            rgb = opened if opened.mode == "RGB" else opened.convert("RGB")
            counts.add(opened, name)
            return rgb
    except UnusableImage:
        raise
    except PIL.UnidentifiedImageError:
        raise UnusableImage(f"not an image of {', '.join(FORMATS)}") from None
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
        limit = PIL.Image.MAX_IMAGE_PIXELS
        raise UnusableImage(f"more than {limit:,} pixels, perhaps a decompression bomb") from None
    except Exception as error:  # TypeError, MemoryError, struct.error …: each decoder has its own
        raise UnusableImage(f"damaged: {one_line(error)}") from None


def _require_moderate(size: tuple[int, int], resolution: int) -> None:
    """Raises UnusableImage when the crop would need more memory than the largest image may."""
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels_of_crop(size, resolution) > limit:
        width, height = size
        raise UnusableImage(
            f"{width} × {height} pixels, whose crop would pass through more than {limit:,}"
        )
