"""The crop of ADM (Dhariwal and Nichol, 2021), as published."""

import PIL.Image

PREPROCESSING = "ADM centre crop version 1: RGB, halved by box, bicubic to the short side, centre"
"""Description of `center_crop` in manifests. Raise its version if the crop gives other pixels."""


def pixels_of_crop(size: tuple[int, int], side: int) -> float:
    """Return about how many pixels an image of `size` (width, height) has when `center_crop` has
    resized its short side to `side`, before the square is cut out."""
    return max(size) / min(size) * side**2


def center_crop(image: PIL.Image.Image, side: int) -> PIL.Image.Image:
    """Resize and crop an RGB image of any size to `side` × `side` pixels, as published for ADM.

    It follows `center_crop_arr` of Dhariwal and Nichol (2021). Halve the image with a box filter
    while its short side is at least 2 `side`. Resize the short side to `side` with a bicubic
    filter. Cut out the centre. Like the published code, this ignores the orientation in EXIF.
    """
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), PIL.Image.Resampling.BOX)
    scale = side / min(image.size)
    size = round(image.width * scale), round(image.height * scale)
    image = image.resize(size, PIL.Image.Resampling.BICUBIC)
    left, top = ((length - side) // 2 for length in image.size)
    return image.crop((left, top, left + side, top + side))
