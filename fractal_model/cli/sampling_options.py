"""Options of `sample`, `edit` and `animate`, and the functions that check and apply them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from fractal_model.cli.options import ModelOption, ParamsOption, find_outputs
from fractal_model.common.errors import FractalError
from fractal_model.config.model import ModelConfig
from fractal_model.config.overrides import parse_override
from fractal_model.config.params_source import DEFAULT_SOURCE, ParamsSource
from fractal_model.config.sampling import GuidanceSchedule, OrderName
from fractal_model.config.serving import ServingConfig
from fractal_model.config.weights import MODEL

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
SizeOption = Annotated[
    str | None,
    typer.Option(
        help="Take the sampling settings of this size in params.yaml. Default: the model's own "
        "settings."
    ),
]


@dataclass(frozen=True)
class SamplingOptions:
    """Options that `sample`, `edit` and `animate` have in common."""

    model: ModelOption
    size: SizeOption = None
    guidance: Annotated[
        float | None, typer.Option(help="Guidance; 1 switches it off. Default: the model's.")
    ] = None
    logit_scale: Annotated[
        float | None,
        typer.Option(
            help="Factor on the logits, the paper's temperature; above 1 makes samples more alike. "
            "Default: the model's."
        ),
    ] = None
    guidance_interval: Annotated[
        str | None,
        typer.Option(
            help="Progress of level 0 between which guidance applies, such as 0.2,0.8. Default: "
            "the model's."
        ),
    ] = None
    guidance_schedule: Annotated[
        GuidanceSchedule | None,
        typer.Option(help="How guidance changes with the progress. Default: the model's."),
    ] = None
    guide: Annotated[
        str | None,
        typer.Option(
            help="Weaker model that guides instead of the prediction without a class, written as "
            "--model. Default: the sampling settings'."
        ),
    ] = None
    iterations: Annotated[
        str | None,
        typer.Option(help="Iterations of each level, such as 16,4. Default: the model's."),
    ] = None
    order: Annotated[
        str | None,
        typer.Option(
            help="Order in which level 0 generates its sub-patches: random, raster, centre-out, "
            "halton, all sub-patch numbers, such as 3,1,0,2, or a file with them. Default: the "
            "model's."
        ),
    ] = None
    params: ParamsOption = DEFAULT_SOURCE

    def load(self) -> tuple[FractalModel, ServingConfig]:
        """Return the model and its guide, with the name of its weights and its sampling settings,
        which have the changes that the options make.

        FractalError: the model does not exist, it has no sampling settings of its own and fits no
        size, a value is not allowed, or the guide is missing or does not fit the model.
        """
        from fractal_model.generation.request import change_sampling
        from fractal_model.tracking.model_source import attach_guide

        model, serving = load_served(self.model, self.size, self.params)
        if self.iterations is None:
            try:
                serving.sampling.level_iterations(model.config)
            except FractalError as error:
                raise FractalError(
                    f"the sampling settings do not fit the model, give --iterations: {error}"
                ) from error
        sampling = change_sampling(
            serving.sampling,
            model.config,
            guidance=self.guidance,
            guidance_interval=parse_interval(self.guidance_interval),
            guidance_schedule=self.guidance_schedule,
            guide=self.guide,
            logit_scale=self.logit_scale,
            iterations=parse_iterations(self.iterations, model.config),
            order=None if self.order is None else _parse_order(self.order),
        )
        sampling = attach_guide(model, sampling, find_outputs(self.params))
        return model, serving.model_copy(update={"sampling": sampling})


def load_served(
    source: str, size: str | None, params: ParamsSource
) -> tuple[FractalModel, ServingConfig]:
    """Load a model, and return it with the name of its weights and its sampling settings: those of
    `size` in params.yaml or, if that is None, the model's own. A model that an earlier version
    wrote has none, and takes those of its size.

    FractalError: the model does not exist, or it has no settings and fits no size.
    """
    from fractal_model.tracking.model_source import load_model, split_weights

    model = load_model(source, find_outputs(params))
    own = model.serving
    if own is not None and size is None:
        sections = {parse_override(text).keys[0] for text in params.overrides}
        if ignored := sections & {"models", "sampling"}:
            raise FractalError(
                f"{source} has its own architecture and sampling settings, so a value of "
                f"{' and '.join(sorted(ignored))} has no effect: name the size whose sampling "
                f"settings to use instead",
                setting="size",
            )
        return model, own
    if own is None and not params.file.is_file():
        raise FractalError(
            f"{source} has no sampling settings, and there is no {params} in {Path.cwd()} to take "
            f"those of its size from: give a file",
            setting="params",
        )
    settings = params.load()
    row = settings.size(size) if size is not None else settings.find_size(model.config)
    weights = own.weights if own is not None else split_weights(source)[1] or MODEL
    return model, ServingConfig(weights=weights, sampling=row.sampling)


def with_sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Replace the parameter `options` of a command by one option for each field of
    `SamplingOptions`."""
    signature = inspect.signature(command, eval_str=True)
    own = signature.parameters.values()
    shared = list(inspect.signature(SamplingOptions, eval_str=True).parameters.values())

    def with_options(**values: Any) -> Any:
        options = {parameter.name: values.pop(parameter.name) for parameter in shared}
        return command(**values, options=SamplingOptions(**options))

    run: Any = wraps(command)(with_options)
    model, *others = shared
    parameters = [model, *(p for p in own if p.name != "options"), *others]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    run.__signature__ = signature.replace(parameters=parameters)
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


_LONGEST_TEXT = 40
_ORDERS: tuple[str, ...] = get_args(OrderName)


def require_images(classes: str, n: int, seed: int, batch_size: int | None = None) -> None:
    """Check a request for `n` images of each class in the option's text `classes`. FractalError:
    see `generation.request.require_request`."""
    from fractal_model.generation.classes import split_classes
    from fractal_model.generation.request import require_request

    require_request(len(split_classes(classes)) * n, seed, batch_size)


def parse_iterations(text: str | None, model: ModelConfig) -> tuple[int, ...] | None:
    """Return the numbers of the option `--iterations`, one for each level; None if it is not given.
    FractalError: see `parse_numbers`."""
    from fractal_model.generation.request import parse_numbers

    return None if text is None else parse_numbers(text, "iterations", len(model.levels))


def parse_interval(text: str | None) -> tuple[float, ...] | None:
    """Return the numbers of the option `--guidance-interval`; None if it is not given.
    FractalError: the text has something else than numbers."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise FractalError(
            f"guidance interval {text[:_LONGEST_TEXT]!r}: expected two numbers such as 0.2,0.8"
        ) from error


def _parse_order(text: str) -> str | tuple[int, ...]:
    from fractal_model.generation.request import parse_numbers

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
