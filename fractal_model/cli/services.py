"""`fractal services up | down | status`: start, stop and list the servers of this machine."""

import os
import time
from dataclasses import asdict

import typer

from fractal_model.cli.options import ParamsOption, group
from fractal_model.common.console import say, show
from fractal_model.common.tables import FittedTable
from fractal_model.config.params_source import DEFAULT_SOURCE, ParamsSource
from fractal_model.services.control import Services

app = group("Start and stop the Prefect, MLflow and Ray servers of this machine.")


def _services(params: ParamsSource) -> Services:
    settings = params.load()
    return Services(params.file, settings.services, settings.paths.outputs, params.overrides)


@app.command()
def up(params: ParamsOption = DEFAULT_SOURCE) -> list[dict[str, object]]:
    """Start the servers and wait until all of them answer."""
    from fractal_model.tracking.local_store import prepare_local_store

    services = _services(params)
    start = time.monotonic()
    if "MLFLOW_BACKEND_STORE_URI" not in os.environ:  # Otherwise the server uses another store.
        prepare_local_store(params.load().paths.outputs)
    services.up(say)
    say(f"all servers run after {time.monotonic() - start:.0f} s; train with")
    say("  prefect deployment run train-fractal/digits --watch")
    say("logs: outputs/services/*.log; stop with `make down`")
    return [asdict(service) for service in services.status()]


@app.command()
def down(params: ParamsOption = DEFAULT_SOURCE) -> dict[str, object]:
    """Stop the servers that `up` started, and nothing else."""
    stopped = _services(params).down()
    say(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")
    return {"stopped": stopped}


@app.command()
def status(params: ParamsOption = DEFAULT_SOURCE) -> list[dict[str, object]]:
    """List the servers with their addresses. The exit code is 1 if no server runs."""
    services = _services(params)
    states = services.status()
    if not states:
        say("nothing is running: `make up` starts the servers")
        raise typer.Exit(1)
    table = FittedTable("", ["service", "state", "process", "address"], texts=(0, 1, 3))
    for service in states:
        table.add_row(service.name, service.state, str(service.pid or ""), service.address)
    show(table)
    if not services.is_supervised():
        say("supervisord is down and restarts no server: run `make down`, then `make up`")
    return [asdict(service) for service in states]
