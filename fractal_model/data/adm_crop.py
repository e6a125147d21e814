"""The crop of ADM (Dhariwal and Nichol, 2021), as published."""

import PIL.Image

PREPROCESSING = "ADM centre crop version 1: RGB, halved by box, bicubic to the short side, centre"
"""What is done to every image, as the manifest names it. Another crop needs another version."""


def pixels_of_crop(size: tuple[int, int], side: int) -> float:
    """How many pixels the bicubic step of `center_crop` makes of an image of (width, height): the
    long side grows with the short one."""
    return max(size) / min(size) * side**2


def center_crop(image: PIL.Image.Image, side: int) -> PIL.Image.Image:
    """Crop an RGB image of any size to `side` × `side`: the published preprocessing of ADM.

    As `center_crop_arr` of Dhariwal and Nichol (2021): halve with a box filter while the short
    side is at least twice the target, bicubic to the short side, centre crop. Nothing else: an
    orientation noted in EXIF is not applied, as there.
    """
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), PIL.Image.Resampling.BOX)
    scale = side / min(image.size)
    size = round(image.width * scale), round(image.height * scale)
    image = image.resize(size, PIL.Image.Resampling.BICUBIC)
    left, top = ((length - side) // 2 for length in image.size)
    return image.crop((left, top, left + side, top + side))
