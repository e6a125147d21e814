"""The command line: `fractal …`, also `python -m fractal_model …`."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from fractal_model.commands import checkpoints, sampling
from fractal_model.commands.measuring import likelihood
from fractal_model.commands.options import ParamsOption
from fractal_model.commands.planning import plan
from fractal_model.commands.sample import sample
from fractal_model.console import console, errors_on_one_line, progress_bar, say
from fractal_model.errors import FractalError
from fractal_model.params import DEFAULT_FILE, load_params

app = typer.Typer(
    help="Train, measure and serve fractal generative models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DatasetArgument = Annotated[str, typer.Argument(help="Name of the data set.")]
DIGITS = "digits"

app.command("likelihood")(likelihood)
app.command("sample")(sample)
app.command("edit")(sampling.edit)
app.command("animate")(sampling.animate)
app.command("plan")(plan)


@app.command()
def parity(
    folder: Annotated[Path, typer.Argument(help="A case: config, weights, inputs, expected.")],
) -> None:
    """Hold the model against numbers measured on the published implementation.

    Prints each quantity's error beside its tolerance; exits with 1 when one is missed.
    """
    from rich.table import Table

    from fractal_model.parity import compare

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
def prepare(dataset: DatasetArgument = DIGITS, params: ParamsOption = DEFAULT_FILE) -> None:
    """Build a prepared data set; `dvc repro` calls this."""
    from fractal_model.data.prepare import prepare_digits

    settings = load_params(params)
    if dataset != DIGITS:
        raise FractalError(f"there is no stage for the data set {dataset!r}: choose {DIGITS}")
    manifest = prepare_digits(
        settings.dataset_folder(dataset),
        validation_images=settings.datasets.digits.validation_images,
        seed=settings.datasets.digits.seed,
    )
    counts = ", ".join(f"{record.images} {name}" for name, record in manifest.splits.items())
    say(f"{dataset}: {counts} images of {manifest.resolution} px, {manifest.checksum[:16]}")


@app.command()
def reference(dataset: DatasetArgument = DIGITS, params: ParamsOption = DEFAULT_FILE) -> None:
    """Extract the Inception features that samples are compared with; `dvc repro` calls this."""
    from fractal_model.data.prepared import open_prepared
    from fractal_model.metrics.inception import load_inception
    from fractal_model.metrics.reference import build_reference

    settings = load_params(params)
    images = settings.metrics.reference_images
    split = open_prepared(settings.dataset_folder(dataset), "train")
    with progress_bar(f"{dataset}: Inception features of real images", images) as update:
        build_reference(
            split,
            load_inception(settings.metrics.inception_weights),
            settings.reference_file(dataset),
            images=images,
            progress=update,
        )


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
        app()
