"""`fractal services up | down | status`: start, stop and list the servers of this machine."""

import os
import time
from pathlib import Path

import typer

from fractal_model.cli.options import ParamsOption, group
from fractal_model.common.console import console, say
from fractal_model.common.tables import FittedTable
from fractal_model.config.params import DEFAULT_FILE, load_params
from fractal_model.services.control import Services

app = group("Start and stop the Prefect, MLflow and Ray servers of this machine.")


def _services(params: Path) -> Services:
    settings = load_params(params)
    return Services(params, settings.services, settings.paths.outputs)


@app.command()
def up(params: ParamsOption = DEFAULT_FILE) -> None:
    """Start the servers and wait until all of them answer."""
    from fractal_model.tracking.local_store import prepare_local_store

    services = _services(params)
    start = time.monotonic()
    if "MLFLOW_BACKEND_STORE_URI" not in os.environ:  # Otherwise the server uses another store.
        prepare_local_store(load_params(params).paths.outputs)
    services.up(say)
    say(f"all servers run after {time.monotonic() - start:.0f} s; train with")
    say("  prefect deployment run train-fractal/digits --watch")
    say("logs: outputs/services/*.log; stop with `make down`")


@app.command()
def down(params: ParamsOption = DEFAULT_FILE) -> None:
    """Stop the servers that `up` started, and nothing else."""
    stopped = _services(params).down()
    say(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


@app.command()
def status(params: ParamsOption = DEFAULT_FILE) -> None:
    """List the servers with their addresses. The exit code is 1 if no server runs."""
    services = _services(params)
    states = services.status()
    if not states:
        say("nothing is running: `make up` starts the servers")
        raise typer.Exit(1)
    table = FittedTable("", ["service", "state", "process", "address"], texts=(0, 1, 3))
    for service in states:
        table.add_row(service.name, service.state, str(service.pid or ""), service.address)
    console.print(table)
    if not services.is_supervised():
        say("supervisord is down and restarts no server: run `make down`, then `make up`")
