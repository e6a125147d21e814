"""Runs a flow as a command. It has options, reports errors on one line and needs no Prefect server.

Decided here: the options are the flow's parameters, with the names, values and help texts of
Prefect's form. So a person starts a run in the same way in the terminal and on Prefect's pages.
"""

import inspect
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import psutil
import typer
from prefect import Flow
from prefect.utilities.callables import parameter_docstrings
from pydantic import TypeAdapter, ValidationError

from fractal_model.common.console import errors_on_one_line, exit_interrupted, is_quiet, run
from fractal_model.common.errors import FractalError
from fractal_model.common.shared_options import with_shared_options
from fractal_model.config.params import load_params
from fractal_model.config.params_source import ParamsSource

GRACE_SECONDS = 10.0
PARAMS_FILE, SET = "params_file", "set"


def _parse_params(value: str | ParamsSource) -> ParamsSource:
    return value if isinstance(value, ParamsSource) else ParamsSource(Path(value))


ParamsOption = Annotated[
    ParamsSource,
    typer.Option(parser=_parse_params, metavar="PATH", help="Path of the settings file."),
]


def _interrupt(signal_number: int, frame: object) -> None:
    """Stop the run at Ctrl-C, and its own Prefect server, which the signal does not reach if it was
    sent to this process alone. Prefect would try to reach the server for minutes, so the process
    ends after `GRACE_SECONDS` at the latest."""
    logging.disable(logging.CRITICAL)
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # It ended in the meantime.
            if any("prefect.server" in word for word in child.cmdline()):
                child.send_signal(signal.SIGINT)
    print(f"stopping, in at most {GRACE_SECONDS:.0f} s …", file=sys.stderr, flush=True)
    timer = threading.Timer(GRACE_SECONDS, exit_interrupted)
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


def flow_command(
    flow: Flow, *, check: Callable[..., None] = lambda params: None, key: str = ""
) -> Callable[..., Any]:
    """Return a function that runs a flow as a command. Its options set the flow's parameters;
    --params sets `params_file`. First, `check` is called with the settings and the other
    parameters, before Prefect and Ray start. It raises FractalError if a parameter or setting is
    wrong. The function returns the flow's result; if the result is no mapping, in a dict under
    `key`."""

    def command(**parameters: Any) -> dict[str, Any]:
        signal.signal(signal.SIGINT, _interrupt)
        # Prefect's log line about a failed run is left out: the command's last line has the reason.
        logging.getLogger("prefect.flow_runs").addFilter(_is_no_failure)
        _require_valid(flow, parameters)
        others = {k: v for k, v in parameters.items() if k not in (PARAMS_FILE, SET)}
        check(load_params(parameters[PARAMS_FILE], parameters[SET]), **others)
        with _prefect_log(logging.WARNING if is_quiet() else logging.NOTSET):
            result = flow(**parameters | {PARAMS_FILE: parameters[PARAMS_FILE].resolve()})
        return {key: result} if key else result

    command.__signature__ = _options(flow)  # type: ignore[attr-defined]
    # The part after "Args:" is the help of the options.
    command.__doc__ = (flow.description or "").partition("\n\nArgs:")[0]
    return command


@contextmanager
def _prefect_log(least: int) -> Iterator[None]:
    """Within the block, Prefect logs nothing below the level `least`."""
    log = logging.getLogger("prefect")
    before = log.level
    log.setLevel(max(before, least))
    try:
        yield
    finally:
        log.setLevel(before)


def _is_no_failure(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Finished in state Failed(")


def _options(flow: Flow) -> inspect.Signature:
    """Signature of the command: one option for each flow parameter, without bounds, because
    `_require_valid` checks them."""
    types, help_texts = get_type_hints(flow.fn), parameter_docstrings(inspect.getdoc(flow.fn) or "")
    return inspect.Signature(
        [
            parameter.replace(
                kind=inspect.Parameter.KEYWORD_ONLY,
                annotation=Annotated[
                    types[name],
                    typer.Option(
                        *(["--params"] if name == PARAMS_FILE else []),
                        metavar="KEY=VALUE" if name == SET else None,
                        help=" ".join(help_texts[name].split()),
                    ),
                ],
            )
            for name, parameter in inspect.signature(flow.fn).parameters.items()
        ],
        return_annotation=types["return"],
    )


def _require_valid(flow: Flow, parameters: dict[str, Any]) -> None:
    """Raise FractalError if a value is outside the bounds of its flow parameter."""
    types = get_type_hints(flow.fn, include_extras=True)
    for name, value in parameters.items():
        try:
            TypeAdapter(types[name]).validate_python(value)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise FractalError(f"{name}: {problem}, found {value!r}", setting=name) from error


def run_command(command: Callable[..., None]) -> None:
    """Run a function as a program. Its arguments become the options, and its docstring the help
    text."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(with_shared_options(command))
    with errors_on_one_line():
        run(app)
