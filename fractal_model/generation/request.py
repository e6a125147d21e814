"""Requests for images: the number of images, their seeds, and changes of the sampling settings.

Decided here: the command line and the Python library check a request in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, Unpack

from pydantic import ValidationError

from fractal_model.common.errors import FractalError
from fractal_model.common.plurals import count_of
from fractal_model.common.strict import LARGEST_SEED
from fractal_model.common.validation import describe
from fractal_model.config.model import ModelConfig
from fractal_model.config.sampling import SamplingConfig
from fractal_model.sampling.orders import require_order

LARGEST_REQUEST = 1_000_000
"""Largest number of images of one request."""
LONGEST_TEXT = 40
"""Number of characters of a wrong text that a message shows."""
_ALLOWED = {
    "guidance": "guidance 0 … 1000",
    "guidance_interval": "two numbers from 0 to 1, the lower one first",
    "logit_scale": "logit scale above 0, at most 1000",
    "iterations": "iterations 1 or more for each level",
}


def require_request(images: int, seed: int, batch_size: int | None = None) -> None:
    """Check a request for `images` images with the seeds from `seed` on. FractalError: the request
    is for too many images or none, or the seed or batch size is out of range."""
    if not 1 <= images <= LARGEST_REQUEST:
        raise FractalError(
            f"{count_of(images, 'image')} asked for: give 1 … {LARGEST_REQUEST:,} in all, and for "
            f"more images ask again with another seed"
        )
    if not 0 <= seed <= LARGEST_SEED - images + 1:
        raise FractalError(
            f"seed {seed} with {count_of(images, 'image')} is out of range: give a seed of 0 … "
            f"{LARGEST_SEED - images + 1}"
        )
    if batch_size is not None and batch_size < 1:
        raise FractalError(f"batch size {batch_size} is out of range: give 1 or more")


class SamplingChanges(TypedDict, total=False):
    """Sampling settings that replace those of a model, by name. None keeps the model's own."""

    guidance: float | None
    guidance_interval: Sequence[float] | None
    guidance_schedule: str | None
    guide: str | None
    logit_scale: float | None
    iterations: Sequence[int] | None
    order: str | Sequence[int] | None


def change_sampling(
    base: SamplingConfig, model: ModelConfig, **changes: Unpack[SamplingChanges]
) -> SamplingConfig:
    """Return the settings `base` with the given values in place of its own. None keeps a value.

    FractalError: a value is not allowed or does not fit the model.
    """
    values = {name: value for name, value in changes.items() if value is not None}
    try:
        settings = SamplingConfig.model_validate({**base.model_dump(), **values})
    except ValidationError as error:
        wrong = dict.fromkeys(str(item["loc"][0]) for item in error.errors() if item["loc"])
        allowed = ", ".join(_ALLOWED[name] for name in wrong if name in _ALLOWED)
        raise FractalError(
            f"{describe(error, SamplingConfig)}{f'; allowed: {allowed}' if allowed else ''}"
        ) from error
    settings.level_iterations(model)
    require_order(settings.order, model)
    return settings


def parse_numbers(text: str, name: str, count: int | None) -> tuple[int, ...]:
    """Return the whole numbers in a text, where commas or blanks separate them. Errors begin with
    `name`. FractalError: the text has something else, or not `count` numbers. If `count` is None,
    any number of them is allowed."""
    try:
        values = tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        start = repr(text[:LONGEST_TEXT]) + ("…" if len(text) > LONGEST_TEXT else "")
        raise FractalError(f"{name}: found {start}, expected whole numbers such as 3,1") from error
    if count is not None and len(values) != count:
        numbers = count_of(len(values), "number")
        raise FractalError(f"{name}: {text!r} has {numbers}, expected {count}")
    return values
