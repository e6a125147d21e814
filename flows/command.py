"""A flow as a command: options, errors on one line, no server needed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from prefect import Flow

from fractal_model.console import HideUserErrors, errors_on_one_line
from fractal_model.params import DEFAULT_FILE, load_params


def run_flow(flow: Flow) -> None:
    """Run a flow with `size` and `params_file` from the command line's --size and --params."""

    def command(
        size: Annotated[str, typer.Option(help="A size of params.yaml.")] = "digits",
        params: Annotated[Path, typer.Option(help="The settings file.")] = DEFAULT_FILE,
    ) -> None:
        load_params(params).size(size)  # a mistake is told before anything starts
        for name in ("prefect.flow_runs", "prefect.task_runs"):
            logging.getLogger(name).addFilter(HideUserErrors())
        flow(size=size, params_file=params.resolve())

    command.__doc__ = flow.description
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    with errors_on_one_line():
        app()
