"""Pictures of the playground: images, masks and heat maps in a size for people, and back.

Decided here: images are enlarged by a whole factor without smoothing, so that a picture of the page
gives the image of the model back exactly.

Shapes: B images of side S.
"""

import math

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fractal_model.generation import editing
from fractal_model.generation.growth import Moment, arrange, draw_tile

PICTURE_PIXELS = 512
"""Approximate side of a picture on the page."""
_HEAT = ((13, 8, 50), (125, 30, 109), (229, 89, 52), (252, 196, 65), (252, 253, 191))
"""Colours of a heat map, from the lowest to the highest value."""
_NO_VALUE = (128, 128, 128)


def picture_of(moment: Moment, patch: int) -> Image.Image:
    """Draw all images of a moment side by side, with outlines of the patches being generated and a
    grid of squares of side `patch` where nothing is generated yet."""
    count, side = moment.hidden.shape[:2]
    columns = math.ceil(math.sqrt(count))
    scale = max(1, PICTURE_PIXELS // columns // side)
    tiles = [draw_tile(moment, b, scale, patch) for b in range(count)]
    return tiles[0] if count == 1 else arrange(tiles, columns)


def enlarged(image: Tensor) -> Image.Image:
    """An image (3, S, S) uint8 as a large picture."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    side = picture.width * max(1, PICTURE_PIXELS // picture.width)
    return picture.resize((side, side), Image.Resampling.NEAREST)


def image_of(picture: Image.Image, side: int) -> Tensor:
    """Return the image (3, S, S) uint8 that an enlarged picture shows, exactly; S is `side`. The
    middle square of any other picture is scaled. FractalError: the picture cannot be read."""
    if picture.width == picture.height and picture.width % side == 0:
        small = picture.convert("RGB").resize((side, side), Image.Resampling.NEAREST)
        exact = small.resize(picture.size, Image.Resampling.NEAREST)
        if exact.tobytes() == picture.convert("RGB").tobytes():
            picture = small
    return editing.read_image(picture, side, fit=True)


def mask_of(layer: Image.Image, side: int) -> Tensor:
    """Return the mask (S, S) bool of the pixels that are kept, S being `side`: False where at least
    half of a pixel is painted on `layer`, a large picture with transparency. As of a picture, its
    middle square is taken."""
    alpha = layer.convert("RGBA").getchannel("A")
    painted = ImageOps.fit(alpha, (side, side), Image.Resampling.BOX)
    return torch.from_numpy(np.array(painted) < editing.WHITE)


def draw_heat(bits: Tensor) -> Image.Image:
    """Draw the bits of each pixel (S, S) as a large picture: dark for 0, bright for the most, grey
    for a pixel without a value."""
    values = bits.numpy()
    known = np.isfinite(values)
    share = np.where(known, values, 0) / max(values[known].max(initial=0), 1e-9)
    places = np.linspace(0, 1, len(_HEAT))
    channels = [np.interp(share, places, channel) for channel in zip(*_HEAT, strict=True)]
    colours = np.where(known[..., None], np.stack(channels, -1), _NO_VALUE).astype(np.uint8)
    return enlarged(torch.from_numpy(colours).permute(2, 0, 1))
