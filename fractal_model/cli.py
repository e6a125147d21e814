"""The command line: `fractal …`, also `python -m fractal_model …`."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from fractal_model.commands import checkpoints, data, models, sampling, services
from fractal_model.commands.benchmarking import benchmark
from fractal_model.commands.evaluating import evaluate
from fractal_model.commands.measuring import likelihood
from fractal_model.commands.options import ParamsOption
from fractal_model.commands.planning import plan
from fractal_model.commands.results import results
from fractal_model.commands.sample import sample
from fractal_model.console import console, errors_on_one_line, run, say
from fractal_model.errors import FractalError
from fractal_model.params import DEFAULT_FILE, load_params

app = typer.Typer(
    help="Train, measure and serve fractal generative models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(data.app, name="data")
app.add_typer(models.app, name="models")
app.add_typer(services.app, name="services")
app.command("evaluate")(evaluate)
app.command("likelihood")(likelihood)
app.command("sample")(sample)
app.command("edit")(sampling.edit)
app.command("animate")(sampling.animate)
app.command("plan")(plan)
app.command("results")(results)
app.command("benchmark")(benchmark)


@app.command()
def parity(
    folder: Annotated[Path, typer.Argument(help="A case: config, weights, inputs, expected.")],
) -> None:
    """Hold the model against numbers measured on the published implementation.

    Prints each quantity's error beside its tolerance; exits with 1 when one is missed.
    """
    from rich.table import Table

    from fractal_model.checkpoints.parity import compare

    table = Table("quantity", "error", "tolerance", "", title=folder.name, title_justify="left")
    comparisons = list(compare(folder))
    for c in comparisons:
        verdict = "ok" if c.passed else "[red]missed"
        table.add_row(c.quantity, f"{c.error:.2e}", f"{c.tolerance:.0e}", verdict)
    console.print(table)
    missed = [c.quantity for c in comparisons if not c.passed]
    if missed:
        raise FractalError(
            f"{len(missed)} of {len(comparisons)} quantities of {folder} are missed, first "
            f"{missed[0]}: this model does not compute what the published one does"
        )
    say(f"{folder.name}: all {len(comparisons)} quantities within tolerance")


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="On 127.0.0.1.")] = 5000,
    params: ParamsOption = DEFAULT_FILE,
) -> None:
    """Open the MLflow UI on this machine's own store."""
    from fractal_model.tracking.store import connect

    uri = connect(load_params(params).paths.outputs)
    if uri.startswith("http"):
        raise FractalError(f"MLFLOW_TRACKING_URI names the server {uri}: open it in a browser")
    _require_free_port(port)
    say(f"MLflow on http://127.0.0.1:{port} (Ctrl-C stops it)")
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", uri]
    raise SystemExit(subprocess.run([sys.executable, "-m", *command], check=False).returncode)


def _require_free_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise FractalError(
                f"port {port} of 127.0.0.1 cannot be used ({error.strerror}): stop what listens "
                f"there or choose another with --port"
            ) from error


app.command("import")(checkpoints.import_checkpoint)
app.command("export")(checkpoints.export_model)


def main() -> None:
    with errors_on_one_line():
        run(app)
