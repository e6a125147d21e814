"""A flow as a command: options, errors on one line, no server needed."""

import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from prefect import Flow

from fractal_model.common.console import HideUserErrors, errors_on_one_line, leave_interrupted, run
from fractal_model.config.params import DEFAULT_FILE, Params, load_params

GRACE_SECONDS = 10.0
ParamsOption = Annotated[Path, typer.Option(help="The settings file.")]
DatasetOption = Annotated[str, typer.Option(help="digits, or a registered data set.")]


def _interrupt(signal_number: int, frame: object) -> None:
    """Ctrl-C reaches the server of the run too; Prefect would try to reach it for minutes."""
    logging.disable(logging.CRITICAL)
    timer = threading.Timer(GRACE_SECONDS, leave_interrupted)
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


def run_flow(flow: Flow, *, check: Callable[[Params, str], None]) -> None:
    """Run a flow with `size` and `params_file` from the command line's --size and --params.

    `check` tells a mistake at once, before Prefect and Ray are started.
    """

    def command(
        size: Annotated[str, typer.Option(help="A size of params.yaml.")] = "digits",
        params: ParamsOption = DEFAULT_FILE,
    ) -> None:
        check(load_params(params), size)
        flow(size=size, params_file=params.resolve())

    run_command(command, flow)


def run_command(command: Callable[..., None], flow: Flow | None = None) -> None:
    """Run a function whose arguments are the command line's options.

    Its help is the description of the flow that it runs; without a flow, its own docstring.
    """
    signal.signal(signal.SIGINT, _interrupt)
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(HideUserErrors())
    if flow is not None:
        # What follows "Args:" is for the form of Prefect's UI.
        command.__doc__ = (flow.description or "").partition("\n\nArgs:")[0]
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    with errors_on_one_line():
        run(app)
