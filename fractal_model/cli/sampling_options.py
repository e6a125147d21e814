"""Options of `sample`, `edit` and `animate`, and the functions that check and apply them."""

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
from fractal_model.common.plurals import count_of
from fractal_model.common.validation import describe
from fractal_model.config.model import ModelConfig
from fractal_model.config.params import DEFAULT_FILE, load_params
from fractal_model.config.sampling import OrderName, SamplingConfig

if TYPE_CHECKING:
    from fractal_model.model.fractal import FractalModel

ClassesOption = Annotated[
    str,
    typer.Option(
        help="Class numbers or names, such as 3,7 or dog,none; `none` draws without a class. If 2 "
        "is the number of one class and the name of another, write number:2 or name:2. Put a name "
        "with a comma in double quotes."
    ),
]


@dataclass(frozen=True)
class SamplingOptions:
    """Options that `sample`, `edit` and `animate` have in common."""

    model: ModelOption
    size: Annotated[
        str | None,
        typer.Option(
            help="Take the sampling settings of this size in params.yaml. Default: the model's own "
            "size."
        ),
    ] = None
    guidance: Annotated[
        float | None, typer.Option(help="Guidance; 1 switches it off. Default: the size's.")
    ] = None
    logit_scale: Annotated[
        float | None,
        typer.Option(
            help="Factor on the logits, the paper's temperature; above 1 makes samples more alike. "
            "Default: the size's."
        ),
    ] = None
    iterations: Annotated[
        str | None,
        typer.Option(help="Iterations of each level, such as 16,4. Default: the size's."),
    ] = None
    order: Annotated[
        str | None,
        typer.Option(
            help="Order in which level 0 generates its sub-patches: random, raster, centre-out, "
            "all sub-patch numbers, such as 3,1,0,2, or a file with them. Default: the size's."
        ),
    ] = None
    params: ParamsOption = DEFAULT_FILE

    def load(self) -> tuple[FractalModel, SamplingConfig]:
        """Return the model and its sampling settings, with the changes that the options make.

        FractalError: the model does not exist or fits no size, or a value is not allowed.
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
                    f"settings of size {size.name} do not fit the model, give --iterations: {error}"
                ) from error
        return model, change_sampling(
            size.sampling,
            model.config,
            guidance=self.guidance,
            logit_scale=self.logit_scale,
            iterations=self.iterations,
            order=self.order,
        )


def with_sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter `options` of a command by one option for each field of
    `SamplingOptions`."""
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
"""Largest number of images that one command draws."""
_LONGEST_TEXT = 40
_ORDERS: tuple[str, ...] = get_args(OrderName)
_ALLOWED = {
    "guidance": "guidance 0 … 1000",
    "logit_scale": "logit scale above 0, at most 1000",
    "iterations": "iterations 1 or more for each level",
}


def require_request(classes: str, n: int, seed: int, batch_size: int | None = None) -> None:
    """Check a request for `n` images of each class in the option's text `classes`. FractalError:
    the request is for too many images or none, or the seed or batch size is out of range."""
    from fractal_model.common.strict import LARGEST_SEED
    from fractal_model.generation.classes import split_classes

    total = len(split_classes(classes)) * n
    if not 1 <= total <= LARGEST_REQUEST:
        raise FractalError(
            f"{count_of(total, 'image')} asked for: give 1 … {LARGEST_REQUEST:,} in all with --n "
            f"and --classes; for more images, run again with another --seed"
        )
    if not 0 <= seed <= LARGEST_SEED - total + 1:
        raise FractalError(
            f"seed {seed} with {count_of(total, 'image')} is out of range: give --seed 0 … "
            f"{LARGEST_SEED - total + 1}"
        )
    if batch_size is not None and batch_size < 1:
        raise FractalError(f"batch size {batch_size} is out of range: give 1 or more")


def change_sampling(
    base: SamplingConfig,
    model: ModelConfig,
    *,
    guidance: float | None = None,
    logit_scale: float | None = None,
    iterations: str | None = None,
    order: str | None = None,
) -> SamplingConfig:
    """Return the settings `base` with the given options in place of its values. None keeps a value.

    FractalError: a value is not allowed or does not fit the model.
    """
    from fractal_model.sampling.orders import require_order

    factors = {"guidance": guidance, "logit_scale": logit_scale}
    changes: dict[str, object] = {k: value for k, value in factors.items() if value is not None}
    if iterations is not None:
        changes["iterations"] = parse_numbers(iterations, "iterations", len(model.levels))
    if order is not None:
        changes["order"] = _parse_order(order)
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


def _parse_order(text: str) -> str | tuple[int, ...]:
    if text in _ORDERS:
        return text
    if text.strip() and set(text) <= set("0123456789, "):
        return parse_numbers(text, "order", None)
    try:
        file_text = Path(text).read_text(errors="replace")
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise FractalError(
            f"order {text[:60]!r} is neither {', '.join(_ORDERS)} nor a file that can be read: "
            f"choose one, or give the numbers of all sub-patches"
        ) from error
    return parse_numbers(file_text, f"order file {text}", None)


def parse_numbers(text: str, name: str, count: int | None) -> tuple[int, ...]:
    """Return the whole numbers in a text, where commas or blanks separate them. Errors begin with
    `name`, the option's name. FractalError: the text has something else, or not `count` numbers. If
    `count` is None, any number of them is allowed."""
    try:
        values = tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        start = repr(text[:_LONGEST_TEXT]) + ("…" if len(text) > _LONGEST_TEXT else "")
        raise FractalError(f"{name}: found {start}, expected whole numbers such as 3,1") from error
    if count is not None and len(values) != count:
        numbers = count_of(len(values), "number")
        raise FractalError(f"{name}: {text!r} has {numbers}, expected {count}")
    return values
