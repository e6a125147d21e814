"""Options that several commands share."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from fractal_model.common.shared_options import with_shared_options
from fractal_model.config.params_source import DEFAULT_SOURCE, ParamsSource

Command = TypeVar("Command", bound=Callable[..., Any])


class _Group(typer.Typer):
    """Typer app whose commands have the shared options."""

    def command(self, *names: Any, **settings: Any) -> Callable[[Command], Command]:
        register = super().command(*names, **settings)

        def add(function: Command) -> Command:
            register(with_shared_options(function))
            return function

        return add


def group(help: str | None = None) -> typer.Typer:
    """Return a Typer app for commands. Without a command, the app prints its help."""
    return _Group(
        help=help,
        no_args_is_help=help is not None,
        add_completion=False,
        pretty_exceptions_enable=False,
    )


def parse_path(text: str | Path) -> Path:
    """Return an option's text as a path. BadParameter: the text is empty, for example because a
    shell variable is not set. Python would read an empty path as the current folder."""
    if not str(text).strip():
        raise typer.BadParameter("it is empty: give a path")
    return Path(text)


def path_option(help: str) -> Any:
    """Return a Typer option that takes a path and refuses an empty text."""
    return typer.Option(parser=parse_path, help=help)


def parse_text(text: str) -> str:
    """Return an option's text unchanged. BadParameter: the text is empty."""
    if not text.strip():
        raise typer.BadParameter("it is empty: give a text")
    return text


ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        parser=parse_text,
        metavar="MODEL",
        help="A checkpoint folder, an exported folder, a repository USER/NAME of the Hugging Face "
        "hub or a registered model such as models:/fractal-digits@champion. Add #ema for the "
        "moving average of its weights, #ema-0.999 for the one with this decay, or #model for the "
        "trained weights. Default: the weights that the model is served with.",
    ),
]


def _parse_params(value: str | ParamsSource) -> ParamsSource:
    return value if isinstance(value, ParamsSource) else ParamsSource(parse_path(value))


ParamsOption = Annotated[
    ParamsSource,
    typer.Option(
        "--params", parser=_parse_params, metavar="PATH", help="The file with the settings."
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        help="Number of Ray workers that share the work, on the cluster in RAY_ADDRESS or on this "
        "machine; 0 for as many as fit. The result does not depend on their number. Default: this "
        "process alone.",
    ),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size", help="Largest number of images at a time. Default: what fits the memory."
    ),
]


def find_outputs(params: ParamsSource) -> Path | None:
    """Return the folder of results that `params` name; None if there is no params.yaml in the
    current folder and neither an option nor FRACTAL_PARAMS names a file. FractalError: see
    `load_params`."""
    is_named = params != DEFAULT_SOURCE or bool(os.environ.get("FRACTAL_PARAMS"))
    if not is_named and not params.file.is_file():
        return None
    return params.load().paths.outputs
