"""Options of the commands that sample, and the settings that they make."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from pydantic import ValidationError

from fractal_model.cli.options import ModelOption, ParamsOption
from fractal_model.common.errors import FractalError
from fractal_model.common.validation import describe
from fractal_model.config.model import ModelConfig
from fractal_model.config.params import DEFAULT_FILE, load_params
from fractal_model.config.sampling import OrderName, SamplingConfig

if TYPE_CHECKING:
    from fractal_model.model.fractal import FractalModel

ClassesOption = Annotated[
    str,
    typer.Option(
        help="Numbers or names, with commas; `none` for no class. name:2 or number:2 where "
        "both are classes; a name that has a comma in double quotes.",
    ),
]


@dataclass(frozen=True)
class SamplingOptions:
    """What `sample`, `edit` and `animate` have in common."""

    model: ModelOption
    size: Annotated[
        str | None,
        typer.Option(
            help="Take the sampling settings of this size in params.yaml; by default the size that "
            "the model is of."
        ),
    ] = None
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; 1 is none. Default: the size's.")
    ] = None
    logit_scale: Annotated[
        float | None,
        typer.Option(
            help="Multiplies the logits (the paper's temperature): above 1 is sharper. "
            "Default: the size's."
        ),
    ] = None
    iterations: Annotated[
        str | None,
        typer.Option(help="Steps of each level from the top, as 16,4. Default: the size's."),
    ] = None
    order: Annotated[
        str | None,
        typer.Option(
            help="In which order the first level's patches come: random, raster, centre-out, or "
            "all their numbers (row by row from 0), as 3,1,0,2 or in a file. Patches inside them "
            "stay in random order."
        ),
    ] = None
    params: ParamsOption = DEFAULT_FILE

    def load(self) -> tuple[FractalModel, SamplingConfig]:
        """The model, and the settings of its size with the options put in their place.

        FractalError: no such model, a model of no known size, or a value that is not allowed.
        """
        from fractal_model.tracking.model_source import load_model

        params = load_params(self.params)
        model = load_model(self.model, params.paths.outputs)
        size = params.size(self.size) if self.size is not None else params.find_size(model.config)
        if self.iterations is None:
            try:
                size.sampling.level_iterations(model.config)
            except FractalError as error:
                raise FractalError(
                    f"the settings of size {size.name} do not fit the model: {error}"
                ) from error
        return model, changed_sampling(
            size.sampling,
            model.config,
            guidance=self.guidance,
            logit_scale=self.logit_scale,
            iterations=self.iterations,
            order=self.order,
        )


def with_sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command each field of `SamplingOptions` as an option of its own, in the place of its
    parameter `options`."""
    own = inspect.signature(command, eval_str=True).parameters.values()
    shared = list(inspect.signature(SamplingOptions, eval_str=True).parameters.values())

    def with_options(**values: Any) -> None:
        options = {parameter.name: values.pop(parameter.name) for parameter in shared}
        command(**values, options=SamplingOptions(**options))

    run: Any = wraps(command)(with_options)
    model, *others = shared
    parameters = [model, *(p for p in own if p.name != "options"), *others]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    run.__signature__ = inspect.Signature(parameters)
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


LARGEST_REQUEST = 1_000_000
_SHOWN = 40
_ORDERS: tuple[str, ...] = get_args(OrderName)
_ALLOWED = {
    "guidance": "guidance 0 … 1000",
    "logit_scale": "logit scale above 0, at most 1000",
    "iterations": "iterations 1 or more for each level",
}


def require_request(classes: str, n: int, seed: int, batch_size: int | None = None) -> None:
    """`n` images of each class. FractalError: too many or none, a seed or batch out of range."""
    from fractal_model.common.strict import LARGEST_SEED
    from fractal_model.generation.classes import split_classes

    kinds = len(split_classes(classes))
    total = kinds * n
    if not 1 <= total <= LARGEST_REQUEST:
        raise FractalError(
            f"{total} images asked for ({kinds} classes of {n}): 1 … {LARGEST_REQUEST} at a "
            f"time; go on with another --seed for more"
        )
    if not 0 <= seed <= LARGEST_SEED - total + 1:
        raise FractalError(
            f"seed {seed} with {total} images is out of range: give --seed 0 … "
            f"{LARGEST_SEED - total + 1}"
        )
    if batch_size is not None and batch_size < 1:
        raise FractalError(f"batch size {batch_size} asked for: give 1 or more")


def changed_sampling(
    base: SamplingConfig,
    model: ModelConfig,
    *,
    guidance: float | None = None,
    logit_scale: float | None = None,
    iterations: str | None = None,
    order: str | None = None,
) -> SamplingConfig:
    """`base` with the options that are not None in its values' place.

    FractalError: a value is not allowed or does not fit the model.
    """
    from fractal_model.sampling.orders import require_order

    factors = {"guidance": guidance, "logit_scale": logit_scale}
    changes: dict[str, object] = {k: value for k, value in factors.items() if value is not None}
    if iterations is not None:
        changes["iterations"] = numbers(iterations, "iterations", len(model.levels))
    if order is not None:
        changes["order"] = _order(order)
    try:
        settings = SamplingConfig.model_validate({**base.model_dump(), **changes})
    except ValidationError as error:
        wrong = dict.fromkeys(str(item["loc"][0]) for item in error.errors() if item["loc"])
        allowed = ", ".join(_ALLOWED[name] for name in wrong if name in _ALLOWED)
        raise FractalError(
            f"{describe(error, SamplingConfig)}{f'; allowed: {allowed}' if allowed else ''}"
        ) from error
    settings.level_iterations(model)
    require_order(settings.order, model)
    return settings


def _order(text: str) -> str | tuple[int, ...]:
    if text in _ORDERS:
        return text
    if text.strip() and set(text) <= set("0123456789, "):
        return numbers(text, "order", None)
    try:
        content = Path(text).read_text(errors="replace")
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise FractalError(
            f"order {text[:60]!r} is neither {', '.join(_ORDERS)} nor a file that can "
            f"be read: choose one, or give the patches' numbers"
        ) from error
    return numbers(content, f"order file {text}", None)


def numbers(text: str, what: str, count: int | None) -> tuple[int, ...]:
    """Read whole numbers with commas or blanks between them.

    FractalError: something else, or not `count` of them where that is given.
    """
    try:
        values = tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        shown = repr(text[:_SHOWN]) + ("…" if len(text) > _SHOWN else "")
        raise FractalError(f"{what}: {shown} given; give whole numbers with commas") from error
    if count is not None and len(values) != count:
        raise FractalError(f"{what} {text!r}: {count} numbers are wanted, {len(values)} given")
    return values
