"""Checks and conversions of the arguments and results of `FractalPipeline`.

Shapes: N images of side S.
"""

import operator
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fractal_model.common.errors import FractalError
from fractal_model.common.safe_text import shorten
from fractal_model.common.strict import LARGEST_SEED
from fractal_model.config.model import UNCONDITIONAL
from fractal_model.generation.request import require_request
from fractal_model.parallel.parts import LARGEST_PART

Class = str | int | None
"""Number or name of a class, or None for no class."""
OutputType = Literal["pil", "pt", "np"]
Images = list[Image.Image] | Tensor | np.ndarray
_LONGEST = 60


def require_output_type(output_type: str) -> None:
    """Raise FractalError if `output_type` is none of those that `convert_images` makes."""
    if output_type not in get_args(OutputType):
        raise FractalError(
            f"output_type is {shorten(repr(output_type), _LONGEST)}: give "
            f"{' or '.join(get_args(OutputType))}"
        )


def whole_number(value: object, name: str) -> int:
    """Return `value` as an integer. `name` is the argument's name in the message. FractalError: it
    is no whole number."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]  # It raises TypeError otherwise.
    except TypeError as error:
        raise FractalError(
            f"{name} is {shorten(repr(value), _LONGEST)}: give a whole number"
        ) from error


def class_text(part: Class) -> str:
    """Return a class in the form of the option `--classes`. FractalError: it is neither a text nor
    a whole number."""
    if part is None:
        return UNCONDITIONAL
    return part.strip() if isinstance(part, str) else str(whole_number(part, "a class"))


def largest_part(batch_size: int | None) -> int:
    """Return the largest number of images at a time. FractalError: it is no whole number."""
    return LARGEST_PART if batch_size is None else whole_number(batch_size, "batch_size")


def first_seed(
    images: int, seed: int | None, generator: torch.Generator | None, batch_size: int = LARGEST_PART
) -> int:
    """Return the seed of the first of `images` images. FractalError: seed and generator are both
    given, or the seed or the batch size is out of range."""
    if seed is not None and generator is not None:
        raise FractalError("seed and generator are both given: give one of them")
    if generator is not None:
        largest = LARGEST_SEED - images + 1
        seed = int(
            torch.randint(largest + 1, (), generator=generator, device=generator.device).item()
        )
    first = 0 if seed is None else whole_number(seed, "seed")
    require_request(images, first, batch_size)
    return first


def convert_images(images: Tensor, output_type: OutputType) -> Images:
    """Return images (N, 3, S, S) uint8 as such a tensor (`pt`), as an array (N, S, S, 3) (`np`) or
    as a list of PIL images (`pil`)."""
    if output_type == "pt":
        return images
    arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
    return arrays if output_type == "np" else [Image.fromarray(array) for array in arrays]
