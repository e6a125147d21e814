"""Every kind of picture becomes the 8-bit RGB that a viewer shows, or is refused with a reason.

All expected pixels are written as numbers. None comes from the library that decodes.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from fractal_model.common.errors import FractalError
from fractal_model.data.decoding import (
    FORMATS,
    Decoded,
    UnusableImage,
    decode,
    decode_as_adm,
    open_picture,
    parse_background,
)
from fractal_model.data.srgb import Profile
from tests.support.icc_profiles import CYAN_IS_BLACK, LINEAR_GREY, RED_IS_GREEN, SRGB
from tests.support.mini_imagenet import encode
from tests.support.picture_files import FLOAT, GREY, PALETTE, RGB, SIGNED, UNSIGNED, png, tiff

RED, WHITE = (255, 0, 0), (255, 255, 255)
HALF = (255, 127, 127)
"""Red with alpha 128 on white: 128 / 255 red and 127 / 255 white."""


def read(content: bytes, reading=decode) -> Decoded:
    with open_picture(io.BytesIO(content)) as opened:
        return reading(opened)


def pixels(content: bytes, reading=decode) -> list[tuple[int, ...]]:
    """Decoded pixels of the first row."""
    return [tuple(pixel) for pixel in np.asarray(read(content, reading).rgb)[0].tolist()]


def picture(mode: str, *row: tuple[int, ...]) -> PIL.Image.Image:
    return PIL.Image.frombytes(mode, (len(row), 1), bytes(v for pixel in row for v in pixel))


def gif_colours(*colours: tuple[int, int, int]) -> PIL.Image.Image:
    """An image with one pixel of each colour, which form its palette."""
    image = PIL.Image.frombytes("P", (len(colours), 1), bytes(range(len(colours))))
    image.putpalette([value for colour in colours for value in colour])
    return image


HIDDEN = picture("RGBA", (*RED, 0), (*RED, 128), (*RED, 255))
TRANSPARENT = {
    "PNG": (encode(HIDDEN, "PNG"), [WHITE, HALF, RED]),
    "TIFF": (encode(HIDDEN, "TIFF"), [WHITE, HALF, RED]),
    "WEBP": (encode(HIDDEN, "WEBP", lossless=True, exact=True), [WHITE, HALF, RED]),
    "grey": (
        encode(picture("LA", (0, 0), (0, 128), (0, 255)), "PNG"),
        [WHITE, (127,) * 3, (0,) * 3],
    ),
    "palette": (
        png(2, 8, PALETTE, b"\0\1", PLTE=bytes([*RED, 0, 0, 9]), tRNS=b"\x80"),
        [HALF, (0, 0, 9)],
    ),
    "palette, 1 colour": (
        png(2, 8, PALETTE, b"\0\1", PLTE=bytes([*RED, 0, 0, 9]), tRNS=b"\0"),
        [WHITE, (0, 0, 9)],
    ),
    "GIF": (encode(gif_colours(RED, (0, 0, 9)), "GIF", transparency=0), [WHITE, (0, 0, 9)]),
    "1-bit": (png(2, 1, GREY, b"\x40", tRNS=b"\0\0"), [WHITE, WHITE]),
    "2-bit": (png(4, 2, GREY, b"\x1b", tRNS=b"\0\2"), [(0,) * 3, (85,) * 3, WHITE, WHITE]),
    "4-bit": (png(2, 4, GREY, b"\x12", tRNS=b"\0\1"), [WHITE, (34,) * 3]),
    "8-bit": (png(2, 8, GREY, b"\1\2", tRNS=b"\0\1"), [WHITE, (2,) * 3]),
    "16-bit": (png(2, 16, GREY, b"\1\1\2\2", tRNS=b"\1\1"), [WHITE, (2,) * 3]),
    "colour": (png(2, 8, RGB, b"\1\2\3\4\5\6", tRNS=b"\0\1\0\2\0\3"), [WHITE, (4, 5, 6)]),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparent_pixels_are_laid_on_white(kind):
    content, expected = TRANSPARENT[kind]
    assert read(content).composited and pixels(content) == expected


@pytest.mark.parametrize(
    ("background", "expected"),
    [
        ("black", [(0, 0, 0), (128, 0, 0), RED]),
        ("#0000ff", [(0, 0, 255), (128, 0, 127), RED]),
    ],
)
def test_transparent_pixels_are_laid_on_the_chosen_colour(background, expected):
    content = TRANSPARENT["PNG"][0]
    assert pixels(content, lambda opened: decode(opened, background)) == expected


def test_avif_is_read_with_its_transparent_parts():
    content = encode(HIDDEN.resize((30, 10), PIL.Image.Resampling.NEAREST), "AVIF", quality=100)
    assert read(content).composited
    hidden, half, red = np.asarray(read(content).rgb)[5, [2, 15, 27]].astype(int)
    assert (abs(hidden - WHITE) <= 1).all() and (abs(half - HALF) <= 3).all()
    assert (abs(red - RED) <= 3).all()


@pytest.mark.parametrize(
    ("text", "name"),
    [("White", "white"), ("#FFFFFF", "white"), ("#000000", "black"), (" #A0b1C2", "#a0b1c2")],
)
def test_a_background_has_one_name(text, name):
    assert parse_background(text) == name


@pytest.mark.parametrize(
    "text", ["", "red", "#fff", "#gggggg", "#ffffff00", "rgb(0,0,0)", "white\nx"]
)
def test_an_unknown_background_is_an_error(text):
    with pytest.raises(
        FractalError, match="expected white, black or a colour such as #80ff00"
    ) as e:
        parse_background(text)
    assert e.value.setting == "background" and "\n" not in str(e.value)


def test_adm_reads_the_colours_of_transparent_pixels():
    content = TRANSPARENT["PNG"][0]
    assert pixels(content, decode_as_adm) == [RED, RED, RED]
    assert not read(content, decode_as_adm).composited


@pytest.mark.parametrize("mode", ["RGBA", "RGB", "LA", "L"])
def test_an_opaque_picture_is_not_composited(mode):
    content = encode(PIL.Image.new("RGBA", (3, 1), (7, 7, 7, 255)).convert(mode), "PNG")
    assert not read(content).composited and pixels(content) == [(7, 7, 7)] * 3


def test_a_transparent_colour_of_16_bits_is_refused():
    """Pillow keeps 8 bits of each value, so that 257 would be as transparent as 256."""
    row = struct.pack(">6H", 256, 0, 0, 257, 0, 0)
    content = png(2, 16, RGB, row, tRNS=struct.pack(">3H", 256, 0, 0))
    with pytest.raises(UnusableImage, match="transparent colour has 16 bits a channel: save it"):
        read(content)
    assert pixels(content, decode_as_adm) == [(1, 0, 0)] * 2


@pytest.mark.parametrize("chunk", ["zTXt", "iCCP"])
def test_a_note_that_unpacks_to_much_is_the_reason(chunk):
    note = {chunk: b"note\0\0" + zlib.compress(bytes(2 << 20))}
    with pytest.raises(UnusableImage, match="unpacks to more than 1 MiB: save it without notes"):
        read(png(1, 8, GREY, b"\1", **note))


GREEN, BRIGHTER = (0, 255, 0), (188,) * 3
"""BRIGHTER is half of the light in sRGB."""
PROFILES = [
    (picture("RGB", RED), "PNG", RED_IS_GREEN, [GREEN]),
    (picture("RGB", RED), "TIFF", RED_IS_GREEN, [GREEN]),
    (picture("RGB", RED), "JPEG", RED_IS_GREEN, [GREEN]),
    (gif_colours(RED, GREEN), "PNG", RED_IS_GREEN, [GREEN, RED]),
    (HIDDEN, "PNG", RED_IS_GREEN, [WHITE, (127, 255, 127), GREEN]),
    (picture("L", (128,)), "PNG", LINEAR_GREY, [BRIGHTER]),
    (PIL.Image.fromarray(np.full((1, 1), 128 * 257, np.uint16)), "PNG", LINEAR_GREY, [BRIGHTER]),
    (picture("CMYK", (255, 0, 0, 0), (0, 255, 0, 0)), "TIFF", CYAN_IS_BLACK, [(0,) * 3, WHITE]),
]


@pytest.mark.parametrize(("image", "kind", "profile", "expected"), PROFILES)
def test_colours_are_converted_by_the_profile(image, kind, profile, expected):
    content = encode(image, kind, icc_profile=profile)
    assert np.abs(np.array(pixels(content)) - np.array(expected)).max() <= 2
    assert read(content).profile is Profile.APPLIED
    assert read(content, decode_as_adm).profile is Profile.NONE
    assert pixels(content, decode_as_adm) == pixels(encode(image, kind), decode_as_adm)


@pytest.mark.parametrize(
    ("profile", "outcome"),
    [
        (None, Profile.NONE),
        (SRGB, Profile.NONE),
        (SRGB[:200], Profile.UNREADABLE),
        (b"x", Profile.UNREADABLE),
        (LINEAR_GREY, Profile.UNREADABLE),
        (CYAN_IS_BLACK, Profile.UNREADABLE),
    ],
)
def test_other_profiles_change_nothing(profile, outcome):
    content = encode(picture("RGB", (10, 128, 250)), "PNG", icc_profile=profile)
    assert pixels(content) == [(10, 128, 250)] and read(content).profile is outcome


RAMP = (0, 128, 129, 4096, 32767, 32768, 65406, 65407, 65535)
IN_8_BITS = [0, 0, 1, 16, 127, 128, 254, 255, 255]
"""RAMP / 257, rounded: 128 / 257 is below a half, 129 / 257 above."""
LITTLE, BIG = struct.pack("<9H", *RAMP), struct.pack(">9H", *RAMP)
SIXTEEN_BITS = {
    "PNG": (png(9, 16, GREY, BIG), IN_8_BITS),
    "TIFF": (tiff(9, 16, LITTLE), IN_8_BITS),
    "TIFF, big-endian": (tiff(9, 16, BIG, order=">"), IN_8_BITS),
    "TIFF, white is 0": (tiff(9, 16, LITTLE, white_is_zero=True), [255 - v for v in IN_8_BITS]),
    "TIFF, 12 bits": (tiff(4, 12, b"\x00\x00\x80\x80\x8f\xff"), [0, 8, 128, 255]),
    "PGM": (b"P5 9 1 65535\n" + BIG, IN_8_BITS),
    "PGM to 1000": (b"P5 3 1 1000\n" + struct.pack(">3H", 0, 500, 1000), [0, 128, 255]),
}


@pytest.mark.parametrize("reading", [decode, decode_as_adm])
@pytest.mark.parametrize("kind", SIXTEEN_BITS)
def test_16_bit_grey_is_scaled(kind, reading):
    content, expected = SIXTEEN_BITS[kind]
    assert pixels(content, reading) == [(v, v, v) for v in expected]


def test_16_bit_colours_differ_by_at_most_one():
    decoded = np.array(pixels(png(3, 16, RGB, BIG)))
    assert np.abs(decoded - np.reshape(IN_8_BITS, (3, 3))).max() <= 1


@pytest.mark.parametrize(
    "content",
    [
        tiff(2, 16, struct.pack("<2h", -5, 9), kind=SIGNED),
        tiff(2, 32, struct.pack("<2I", 5, 2**32 - 1), kind=UNSIGNED),
        tiff(2, 32, struct.pack("<2i", -5, 2**31 - 1), kind=SIGNED),
        tiff(2, 32, struct.pack("<2f", 0.5, 2.0), kind=FLOAT),
        b"Pf 2 1 -1.0\n" + struct.pack("<2f", 0.5, 2.0),
    ],
)
@pytest.mark.parametrize("reading", [decode, decode_as_adm])
def test_formats_that_do_not_define_white_are_refused(content, reading):
    with pytest.raises(UnusableImage, match="do not say what is white: save it with 8 bits"):
        read(content, reading)


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (
            picture("CMYK", (0, 255, 255, 0), (0, 0, 0, 255), (0, 0, 0, 0)),
            "TIFF",
            [RED, (0,) * 3, WHITE],
        ),
        (picture("LAB", (0, 0, 0), (255, 0, 0)), "TIFF", [(0,) * 3, WHITE]),
        (PIL.Image.frombytes("1", (2, 1), b"\x40"), "PNG", [(0,) * 3, WHITE]),
        (PIL.Image.frombytes("1", (2, 1), b"\x40"), "TIFF", [(0,) * 3, WHITE]),
    ],
)
@pytest.mark.parametrize("reading", [decode, decode_as_adm])
def test_other_colour_modes_become_rgb(image, kind, expected, reading):
    decoded = pixels(encode(image, kind), reading)
    assert np.abs(np.array(decoded) - np.array(expected)).max() <= 2, decoded


@pytest.mark.parametrize("reading", [decode, decode_as_adm])
def test_a_tiff_of_luma_and_chroma_is_refused(reading):
    """Pillow reads these files from version 13 on."""
    with pytest.raises(UnusableImage, match="damaged: image file is truncated"):
        read(encode(picture("YCbCr", (76, 85, 255), (255, 128, 128)), "TIFF"), reading)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("reading", [decode, decode_as_adm])
def test_a_picture_without_exif_is_upright(kind, reading):
    decoded = read(encode(PIL.Image.new("RGB", (32, 16)), kind), reading)
    assert decoded.orientation == 1 and decoded.rgb.size == (32, 16)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_picture_is_turned_as_exif_says(kind):
    """With orientation 6 the stored left side is shown on top."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:, :16] = 200
    content = encode(PIL.Image.fromarray(stored), kind, exif=exif)
    decoded = read(content)
    assert decoded.orientation == 6
    shown = np.asarray(decoded.rgb).astype(int)
    assert shown.shape == (32, 16, 3)
    assert shown[:12].min() > 180 and shown[-12:].max() < 20


def test_adm_does_not_turn_pictures():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    decoded = read(encode(PIL.Image.new("RGB", (32, 16)), "JPEG", exif=exif), decode_as_adm)
    assert decoded.rgb.size == (32, 16) and decoded.orientation == 6


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_the_first_of_several_frames_is_taken(kind):
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    decoded = pixels(encode(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert np.abs(np.array(decoded) - RED).max() <= 2
