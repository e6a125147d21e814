"""The random numbers of patches, found among those of their images.

Shapes: R patches of side P, with T sub-patches each.
"""

from torch import Tensor

from fractal_model.config.model import LevelConfig
from fractal_model.model.fractal import Rows
from fractal_model.model.randomness import ImageNoise


def noise_at(noise: Tensor | None, rows: Rows, image_size: int, patch_size: int) -> Tensor:
    """Return the random numbers (R, …) of patches of side `patch_size` in images of side
    `image_size`. `noise` (B, patches, …) has those of all patches of each image."""
    assert noise is not None  # `ImageNoise.draw` draws them for this kind of level.
    return noise[rows.image, rows.index(image_size, patch_size)]


def as_images(noise: ImageNoise, i: int, level: LevelConfig, rows: Rows, side: int) -> ImageNoise:
    """Return the random numbers of patches of level i, the innermost one, as those of R images of
    side P. `side` is that of the images which the patches are part of."""
    image, top, left = rows.pixels(level.patch_size)
    above = (None,) * i
    orders, guides = (
        None if part is None else noise_at(part, rows, side, level.patch_size)[:, None]
        for part in (noise.orders[i], noise.guides[i])
    )
    pixels = noise.pixels[image, top * side + left].flatten(1, 2)
    return ImageNoise(pixels, (*above, orders), (*above, guides))
