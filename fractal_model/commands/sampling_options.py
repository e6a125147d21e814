"""Options of the commands that sample, and the settings that they make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fractal_model.errors import FractalError

if TYPE_CHECKING:
    from fractal_model.config import ModelConfig
    from fractal_model.params import Params
    from fractal_model.sampling.orders import PatchOrder
    from fractal_model.sampling.settings import SamplingConfig

ClassesOption = Annotated[
    str, typer.Option(help="Numbers or names, with commas; `none` for no class.")
]
SizeOption = Annotated[
    str | None,
    typer.Option(
        help="Take the sampling settings of this size in params.yaml; by default the size that "
        "the model is of."
    ),
]
GuidanceOption = Annotated[
    float | None, typer.Option(help="Classifier-free guidance; 1 is none. Default: the size's.")
]
LogitScaleOption = Annotated[
    float | None,
    typer.Option(
        help="Multiplies the logits (the paper's temperature): above 1 is sharper. "
        "Default: the size's."
    ),
]
IterationsOption = Annotated[
    str | None,
    typer.Option(help="Steps of each level from the top, as 16,4. Default: the size's."),
]
OrderOption = Annotated[
    str | None,
    typer.Option(
        help="In which order the first level's patches come: random, raster, centre-out, or a "
        "file with their numbers (row by row from 0). Patches inside them stay in random order."
    ),
]


def sampling_settings(
    params: Params,
    model: ModelConfig,
    size: str | None,
    *,
    guidance: float | None,
    logit_scale: float | None,
    iterations: str | None,
    order: str | None,
) -> SamplingConfig:
    """The settings of a size of params.yaml, by default the model's own, with what is given put in
    their place. FractalError: the model is of no known size, or a value is not allowed."""
    from pydantic import ValidationError

    from fractal_model.sampling.settings import SamplingConfig
    from fractal_model.validation import describe

    base = params.size(size) if size is not None else params.size_of(model)
    given = {
        "guidance": guidance,
        "logit_scale": logit_scale,
        "iterations": iterations and numbers(iterations, "iterations", len(model.levels)),
        "order": order and _order(order),
    }
    changes = {name: value for name, value in given.items() if value is not None}
    try:
        settings = SamplingConfig.model_validate({**base.sampling.model_dump(), **changes})
    except ValidationError as error:
        raise FractalError(
            f"{describe(error, SamplingConfig)}; allowed: guidance 0 or more, logit scale above 0, "
            f"iterations 1 or more for each level"
        ) from error
    settings.level_iterations(model)
    return settings


def _order(text: str) -> PatchOrder:
    from typing import get_args

    from fractal_model.sampling.orders import OrderName

    if text in get_args(OrderName):
        return text
    if not Path(text).is_file():
        raise FractalError(
            f"order {text!r} is neither {', '.join(get_args(OrderName))} nor a file: choose one, "
            f"or give a file with the patches' numbers"
        )
    return numbers(Path(text).read_text(errors="replace"), f"order file {text}", None)


def numbers(text: str, what: str, count: int | None) -> tuple[int, ...]:
    """Whole numbers with commas or blanks between them; `count` of them, or any number."""
    try:
        numbers = tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        raise FractalError(f"{what}: {error}; give whole numbers with commas") from error
    if count is not None and len(numbers) != count:
        raise FractalError(f"{what} {text!r} has {len(numbers)} numbers: give {count}")
    return numbers
