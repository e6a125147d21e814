"""A flow as a command: options, errors on one line, no server needed.

Decided here: the options are the flow's own parameters, with the same names, values and help as in
Prefect's form, so that a run is asked for in the same way at both places.
"""

import inspect
import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from prefect import Flow
from prefect.utilities.callables import parameter_docstrings
from pydantic import TypeAdapter, ValidationError

from fractal_model.common.console import errors_on_one_line, exit_interrupted, run
from fractal_model.common.errors import FractalError
from fractal_model.config.params import load_params

GRACE_SECONDS = 10.0
PARAMS_FILE = "params_file"
ParamsOption = Annotated[Path, typer.Option(help="The settings file.")]


def _interrupt(signal_number: int, frame: object) -> None:
    """Ctrl-C reaches the server of the run too; Prefect would try to reach it for minutes."""
    logging.disable(logging.CRITICAL)
    timer = threading.Timer(GRACE_SECONDS, exit_interrupted)
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


def run_flow(flow: Flow, *, check: Callable[..., None] = lambda params: None) -> None:
    """Run a flow with its parameters from the command line, `params_file` from --params.

    `check` gets the settings and the other parameters, and tells a mistake at once, before Prefect
    and Ray are started.
    """

    def command(**parameters: Any) -> None:
        _require_allowed(flow, parameters)
        file = parameters.pop(PARAMS_FILE)
        check(load_params(file), **parameters)
        flow(**parameters, **{PARAMS_FILE: file.resolve()})

    command.__signature__ = _options(flow)  # type: ignore[attr-defined]
    # What follows "Args:" is the help of the options.
    command.__doc__ = (flow.description or "").partition("\n\nArgs:")[0]
    logging.getLogger("prefect.flow_runs").addFilter(_is_no_failure)
    run_command(command)


def _is_no_failure(record: logging.LogRecord) -> bool:
    """False for Prefect's line of a failed run: the command's last line says it."""
    return not record.getMessage().startswith("Finished in state Failed(")


def _options(flow: Flow) -> inspect.Signature:
    """The flow's signature as Typer reads it; the bounds of the values are left to the flow."""
    types, help_texts = get_type_hints(flow.fn), parameter_docstrings(inspect.getdoc(flow.fn) or "")
    return inspect.Signature(
        [
            each.replace(
                kind=inspect.Parameter.KEYWORD_ONLY,
                annotation=Annotated[
                    types[name],
                    typer.Option(
                        *(["--params"] if name == PARAMS_FILE else []),
                        help=" ".join(help_texts[name].split()),
                    ),
                ],
            )
            for name, each in inspect.signature(flow.fn).parameters.items()
        ]
    )


def _require_allowed(flow: Flow, parameters: dict[str, Any]) -> None:
    """FractalError: a value is out of the bounds that the flow's parameter has."""
    types = get_type_hints(flow.fn, include_extras=True)
    for name, value in parameters.items():
        try:
            TypeAdapter(types[name]).validate_python(value)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise FractalError(f"{name}: {problem}, found {value!r}", setting=name) from error


def run_command(command: Callable[..., None]) -> None:
    """Run a function whose arguments are the command line's options; its docstring is the help."""
    signal.signal(signal.SIGINT, _interrupt)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    with errors_on_one_line():
        run(app)
