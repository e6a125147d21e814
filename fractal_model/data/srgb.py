"""Convert a picture's colours to sRGB by the ICC profile in its file.

Decided here: a picture without a profile is sRGB, and so is one whose profile changes no colour by
more than rounding. It keeps its pixels. A profile that is broken, or is for another kind of picture
than the one it lies in, is ignored. The picture is then used as it is, and counted.
"""

import io
from enum import Enum
from functools import lru_cache
from itertools import chain, product

import numpy as np
import PIL.Image
from PIL import ImageCms

_KEPT = 8  # transforms, each with its profile
_ROUNDING = 2
"""Largest difference, in values, between the same colour in two descriptions of sRGB."""
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Pillow's mode of the pictures that a profile is for, by the profile's colour space."""
_GREY = ("1", "L", "LA")


class Profile(Enum):
    """What was done about a picture's profile."""

    NONE = "there is none, or it is sRGB"
    APPLIED = "the colours were converted"
    UNREADABLE = "it was ignored"


def to_srgb(image: PIL.Image.Image, profile: bytes | None) -> tuple[PIL.Image.Image, Profile]:
    """Convert a picture of 8 bits. It becomes RGB, or RGBA if parts of it are transparent."""
    if not profile or image.mode == "LAB":  # Its colours do not depend on a device.
        return image, Profile.NONE
    try:
        mode, transform = _transform(profile)
        if (mode == "CMYK") != (image.mode == "CMYK") or (mode == "L" and image.mode not in _GREY):
            return image, Profile.UNREADABLE
        if transform is None:
            return image, Profile.NONE
        # `convert` leaves the colours of transparent pixels as they are.
        colours = image if image.mode == mode else image.convert(mode)
        converted = ImageCms.applyTransform(colours, transform)
    except (ImageCms.PyCMSError, OSError, KeyError, TypeError, ValueError):
        return image, Profile.UNREADABLE
    assert converted is not None
    if image.has_transparency_data:
        converted.putalpha(image.convert("RGBA").getchannel("A"))
    return converted, Profile.APPLIED


@lru_cache(_KEPT)
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """Return the mode of pictures that a profile is for, and the transform of their colours to
    sRGB; None if it changes nothing."""
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    mode = _MODES[opened.profile.xcolor_space.strip()]
    transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode == "CMYK":
        return mode, transform
    colours = list(product(range(0, 256, 15), repeat=len(mode)))
    before = PIL.Image.frombytes(mode, (len(colours), 1), bytes(chain.from_iterable(colours)))
    after = ImageCms.applyTransform(before, transform)
    assert after is not None
    changes = np.asarray(after).astype(int) - np.asarray(before.convert("RGB"))
    return mode, transform if np.abs(changes).max() > _ROUNDING else None
