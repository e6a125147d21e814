"""Convert a picture's colours to sRGB by the ICC profile in its file.

Decided here: a picture without a profile counts as sRGB, and so does one whose profile changes no
colour by more than rounding. Such a picture keeps its pixels. A profile that is broken, or for
another kind of picture, is ignored. The picture then keeps its pixels, and the report counts it.
"""

import io
from enum import Enum
from functools import lru_cache
from itertools import chain, product

import numpy as np
import PIL.Image
from PIL import ImageCms

_KEPT = 8  # cached transforms, one for each profile
_ROUNDING = 2
"""Largest change of a colour value (0 … 255) that a profile may cause by rounding alone."""
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Colour space in an ICC profile, and the Pillow mode of the pictures that the profile is for."""
_GREY = ("1", "L", "LA")


class Profile(Enum):
    """What `to_srgb` did with the ICC profile of a picture."""

    NONE = "there is none, or it is sRGB"
    APPLIED = "the colours were converted"
    UNREADABLE = "it was ignored"


def to_srgb(image: PIL.Image.Image, profile: bytes | None) -> tuple[PIL.Image.Image, Profile]:
    """Convert a picture with 8 bits a channel to sRGB by the ICC `profile` of its file. Return the
    picture and what was done. A converted picture is RGB, or RGBA if parts of it are transparent. A
    picture that needs no conversion, or whose profile is ignored, is returned unchanged."""
    if not profile or image.mode == "LAB":  # LAB does not depend on a device.
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
    """Return the Pillow mode of the pictures that a profile is for, and the transform from its
    colours to sRGB. The transform is None if it would change colours only by rounding."""
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
