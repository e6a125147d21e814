"""A picture file as 8-bit RGB, or the reason why it cannot be used: every picture that a person
gives is read here.

Decided here: a picture is read as a viewer shows it. It is turned as its EXIF data say, what is
transparent is laid on white, 16-bit grey is scaled to 8 bits, and of several frames the first is
taken. Numbers that do not say what is white, such as floating-point ones, are refused. ImageNet
alone is read as ADM reads it, neither turned nor laid on white. Whatever a decoder says of damaged
bytes is a reason, not a crash; notes beside the pixels, such as EXIF, never decide whether a
picture is used.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
from PIL.ExifTags import Base as ExifTag
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from fractal_model.common.errors import one_line

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Decoded. Others, such as PostScript, would start other programs."""
READING = "Pictures version 1: turned by EXIF, on white, 16-bit grey scaled"
"""How `decode` reads a picture, as the manifest names it. Another reading needs another version."""

_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # of TIFF
_OPAQUE = 255


class UnusableImage(Exception):
    """An image that is left out. The text is the reason."""


class Decoded(NamedTuple):
    """A picture's pixels, and what was done to them."""

    rgb: PIL.Image.Image
    orientation: int | None
    """As EXIF numbers it, 1 for upright; None where EXIF cannot be read."""
    composited: bool = False
    """True if some of the picture is transparent and was laid on white."""


@contextmanager
def open_picture(file: BinaryIO, formats: tuple[str, ...] = FORMATS) -> Iterator[ImageFile]:
    """Yield the picture, not decoded yet. Whatever goes wrong, here or in the block, is
    UnusableImage: of no known format, damaged, too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of metadata: ImageNet has corrupt EXIF
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(file, formats=formats) as opened:
                yield opened
    except UnusableImage:
        raise
    except PIL.UnidentifiedImageError:
        raise UnusableImage(f"not an image of {', '.join(formats)}") from None
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
        limit = PIL.Image.MAX_IMAGE_PIXELS
        raise UnusableImage(f"more than {limit:,} pixels, perhaps a decompression bomb") from None
    except Exception as error:  # TypeError, MemoryError, struct.error …: each decoder has its own
        raise UnusableImage(f"damaged: {one_line(error)}") from None


def decode(opened: ImageFile) -> Decoded:
    """The picture as a viewer shows it. UnusableImage: its numbers do not say what is white."""
    _scale_transparent_colour(opened)
    orientation = _orientation(opened)
    opened.load()
    with suppress(Exception):  # turns first, and then rewrites EXIF that may be corrupt
        PIL.ImageOps.exif_transpose(opened, in_place=True)
    return _on_white(_eight_bits(opened), orientation)


def decode_as_adm(opened: ImageFile) -> Decoded:
    """The picture as ADM reads it: neither turned nor laid on white."""
    orientation = _orientation(opened)
    opened.load()
    return Decoded(_as_rgb(_eight_bits(opened)), orientation)


def _as_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy RGB


def _orientation(opened: ImageFile) -> int | None:
    try:
        return opened.getexif().get(ExifTag.Orientation, 1)
    except Exception:  # its parser raises what it likes; the pixels are intact
        return None


def _on_white(image: PIL.Image.Image, orientation: int | None) -> Decoded:
    if not image.has_transparency_data:
        return Decoded(_as_rgb(image), orientation)
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    if rgba.getchannel("A").getextrema() == (_OPAQUE, _OPAQUE):
        return Decoded(_as_rgb(rgba), orientation)
    canvas = PIL.Image.new("RGB", rgba.size, "white")
    canvas.paste(rgba, mask=rgba)
    return Decoded(canvas, orientation, composited=True)


def _scale_transparent_colour(opened: ImageFile) -> None:
    """Pillow scales a PNG's pixels to 8 bits, and leaves the colour that is transparent as it is
    in the file: bring it to the same scale. Before the pixels are decoded."""
    colour = opened.info.get("transparency")
    if opened.format != "PNG" or colour is None or not opened.tile:
        return
    depth = opened.tile[0].args
    if depth in ("L;2", "L;4"):
        opened.info["transparency"] = colour * {"L;2": 85, "L;4": 17}[depth]
    elif depth == "RGB;16B":
        opened.info["transparency"] = tuple(value >> 8 for value in colour)


def _eight_bits(image: ImageFile) -> PIL.Image.Image:
    """Grey of more than 8 bits in 8, with alpha where a grey is transparent; others as they are."""
    if not image.mode.startswith(("I", "F")):
        return image
    white, inverted = _white_level(image)
    scaled = (np.arange(white + 1) * 255 + white // 2) // white
    table = (255 - scaled if inverted else scaled).astype(np.uint8)
    values = np.asarray(image)
    grey = PIL.Image.fromarray(table[values])
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey.putalpha(PIL.Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _white_level(image: ImageFile) -> tuple[int, bool]:
    """The number that is white, or black where the flag is set. UnusableImage: nobody knows."""
    if image.format == "PPM" and image.mode == "I":
        return 2**16 - 1, False  # to which Pillow has scaled
    if not image.mode.startswith("I;16"):
        raise UnusableImage(
            f"its numbers (mode {image.mode}) do not say what is white: save it with 8 bits a "
            f"channel"
        )
    if not isinstance(image, TiffImageFile):
        return 2**16 - 1, False
    tags = image.tag_v2
    return 2 ** tags[_BITS_PER_SAMPLE][0] - 1, tags[_PHOTOMETRIC] == _WHITE_IS_ZERO
