"""Read a picture file as 8-bit RGB, or give the reason why it cannot be used.

Decided here: a picture is read as a viewer shows it. It is turned as its EXIF data say, its
colours are converted to sRGB by its ICC profile, transparent pixels are laid on a background
colour, 16-bit grey is scaled to 8 bits, and the first of several frames is taken.
Formats that do not define which number is white, such as floating-point ones, are refused. Only
ImageNet is read as ADM reads it: not turned, not converted and not laid on a colour. Any error of a
decoder becomes the reason why the picture is left out. Metadata such as EXIF are never the reason,
with one exception: a PNG whose text notes unpack to more than Pillow allows.
"""

import re
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

from fractal_model.common.errors import FractalError, one_line
from fractal_model.data.srgb import Profile, to_srgb

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM")
"""Formats that Pillow may open. Others are refused, because opening some of them is not safe: for
PostScript, Pillow would start another program."""
WHITE = "white"
BACKGROUND = r"white|black|#[0-9a-f]{6}"
"""Regular expression of the names of background colours, as `parse_background` returns them."""

_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags and a value of TIFF
_OPAQUE = 255


class UnusableImage(Exception):
    """Raised for an image that cannot be used. The text is the reason."""


class Decoded(NamedTuple):
    """A decoded picture."""

    rgb: PIL.Image.Image
    orientation: int | None
    """Orientation as EXIF numbers it: 1 is upright. None if the EXIF data cannot be read."""
    profile: Profile = Profile.NONE
    """What was done with the ICC profile of the file."""
    composited: bool = False
    """True if parts of the picture are transparent and were laid on the background colour."""


def describe_reading(background: str) -> str:
    """Return the description of `decode` that manifests store. Raise its version when `decode`
    returns other pixels for the same file."""
    return f"Pictures version 2: turned by EXIF, in sRGB, on {background}, 16-bit grey scaled"


def parse_background(text: str) -> str:
    """Return the name of the background colour `text`: white, black or #rrggbb in small letters.
    FractalError: it is another text."""
    name = text.strip().lower()
    if not re.fullmatch(BACKGROUND, name):
        raise FractalError(
            f"the background is {text!r}, expected white, black or a colour such as #80ff00",
            setting="background",
        )
    return {"#ffffff": WHITE, "#000000": "black"}.get(name, name)


@contextmanager
def open_picture(file: BinaryIO, formats: tuple[str, ...] = FORMATS) -> Iterator[ImageFile]:
    """Open a picture file, and yield the picture before its pixels are decoded. Any error in the
    opening or in the `with` block is raised as UnusableImage, for example an unknown format, damage
    or too many pixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Some EXIF in ImageNet is corrupt.
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
    except Exception as error:  # Decoders raise TypeError, MemoryError, struct.error …
        if "MAX_TEXT" in str(error):
            raise UnusableImage(
                "a note or profile in the PNG unpacks to more than 1 MiB: save it without notes"
            ) from None
        raise UnusableImage(f"damaged: {one_line(error)}") from None


def decode(opened: ImageFile, background: str = WHITE) -> Decoded:
    """Decode the picture as a viewer shows it: turned by EXIF, in sRGB, transparent parts laid on
    the colour `background`. UnusableImage: the file does not define which number is white, or its
    transparent pixels cannot be found."""
    _scale_transparent_colour(opened)
    orientation = _orientation(opened)
    opened.load()
    with suppress(Exception):  # Pillow turns the pixels before it fails at corrupt EXIF.
        PIL.ImageOps.exif_transpose(opened, in_place=True)
    converted, profile = to_srgb(_scale_to_eight_bits(opened), opened.info.get("icc_profile"))
    rgb, composited = _lay_on(background, converted)
    return Decoded(rgb, orientation, profile, composited)


def decode_in_memory(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Return a picture that is not read from a file as RGB, as `decode` shows it; the picture
    itself stays as it is. UnusableImage: see `decode`."""
    picture = PIL.ImageOps.exif_transpose(picture)
    converted, _ = to_srgb(_scale_to_eight_bits(picture), picture.info.get("icc_profile"))
    return _lay_on(WHITE, converted)[0]


def decode_as_adm(opened: ImageFile) -> Decoded:
    """Decode the picture as ADM does: not turned, not converted to sRGB, not laid on a colour."""
    orientation = _orientation(opened)
    opened.load()
    return Decoded(_to_rgb(_scale_to_eight_bits(opened)), orientation)


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")  # convert() always copies.


def _orientation(opened: ImageFile) -> int | None:
    try:
        return opened.getexif().get(ExifTag.Orientation, 1)
    except Exception:  # The EXIF parser failed, but the pixels are intact.
        return None


def _lay_on(background: str, image: PIL.Image.Image) -> tuple[PIL.Image.Image, bool]:
    """Return the picture as RGB with its transparent parts laid on the colour `background`, and
    True if it has transparent parts."""
    if not image.has_transparency_data:
        return _to_rgb(image), False
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    if rgba.getchannel("A").getextrema() == (_OPAQUE, _OPAQUE):
        return _to_rgb(rgba), False
    canvas = PIL.Image.new("RGB", rgba.size, background)
    canvas.paste(rgba, mask=rgba)
    return canvas, True


def _scale_transparent_colour(opened: ImageFile) -> None:
    """Scale the grey value that a PNG marks as transparent from 2 or 4 bits to 8, as Pillow scales
    the pixels. Call it before the pixels are decoded. UnusableImage: the marked colour has 16 bits
    a channel. Pillow keeps only 8 of them, so the transparent pixels cannot be found."""
    colour = opened.info.get("transparency")
    if opened.format != "PNG" or colour is None or not opened.tile:
        return
    depth = opened.tile[0].args
    if depth in ("L;2", "L;4"):
        opened.info["transparency"] = colour * {"L;2": 85, "L;4": 17}[depth]
    elif depth == "RGB;16B":
        raise UnusableImage(
            "its transparent colour has 16 bits a channel: save it with 8 bits or without it"
        )


def _scale_to_eight_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """Scale a grey picture of more than 8 bits to 8, and return any other picture unchanged. If the
    file marks one grey value as transparent, the result has an alpha channel."""
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


def _white_level(image: PIL.Image.Image) -> tuple[int, bool]:
    """Return the largest grey value that the image's format allows, and whether that value means
    black (True) or white (False). UnusableImage: the format does not define a largest value."""
    if image.format == "PPM" and image.mode == "I":
        return 2**16 - 1, False  # Pillow has scaled to this range.
    if not image.mode.startswith("I;16"):
        raise UnusableImage(
            f"its numbers (mode {image.mode}) do not say what is white: save it with 8 bits a "
            f"channel"
        )
    if not isinstance(image, TiffImageFile):
        return 2**16 - 1, False
    tags = image.tag_v2
    return 2 ** tags[_BITS_PER_SAMPLE][0] - 1, tags[_PHOTOMETRIC] == _WHITE_IS_ZERO
