"""Pictures in the forms in which programs have them: PIL images, files, arrays and tensors.

Shapes: N pictures of height H and width W.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from fractal_model.common.errors import FractalError
from fractal_model.generation.editing import Source

Picture = Image.Image | str | Path | Tensor | np.ndarray
"""A PIL image, a file, an array (H, W) or (H, W, 3), or a tensor (H, W) or (3, H, W). Arrays and
tensors are uint8, or bool for a mask."""


def as_source(picture: Picture, kind: str) -> Source:
    """Return the picture as a file or a PIL image. `kind` is its name in error messages.
    FractalError: an array has another shape or data type."""
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, str | Path):
        return Path(picture)
    if isinstance(picture, Tensor):
        array = picture.detach().cpu().numpy()
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
    else:
        array = np.asarray(picture)
    is_picture = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if not is_picture or not array.size or array.dtype not in (np.uint8, np.bool_):
        original = picture if isinstance(picture, Tensor) else array
        raise FractalError(
            f"the {kind} is an array of shape {tuple(original.shape)} and type {original.dtype}: "
            f"give uint8 of shape (H, W, 3), as a tensor (3, H, W), or (H, W) for grey and masks"
        )
    return Image.fromarray(
        np.where(array, 255, 0).astype(np.uint8) if array.dtype == bool else array
    )


def split_pictures(pictures: Picture | Sequence[Picture]) -> Sequence[Picture]:
    """Return one or more pictures as a list. An array of four dimensions is N pictures."""
    if isinstance(pictures, Tensor | np.ndarray):
        return list(pictures) if pictures.ndim == 4 else [pictures]
    return [pictures] if isinstance(pictures, Image.Image | str | Path) else pictures
