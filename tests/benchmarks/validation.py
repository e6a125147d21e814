"""Measure what validation costs a training on this machine, in pairs with and without it.

    python -m tests.benchmarks.validation [--pairs 3] [--epochs 22] [--preview-every 0] [--json]

It trains `digits` with the workers of its recipe, in turn without and with validation, each time
from the beginning. "Step" is the median time of a step over a run's reports, in which the workers'
own waits for validation do not count. "Total" is the whole training with the start of its workers.
The program exits with 1 when a goal is missed. pytest does not collect it.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fractal_model.common.console import console, errors_on_one_line
from fractal_model.common.errors import FractalError
from fractal_model.config.params import DEFAULT_FILE, load_params
from fractal_model.data.manifest import read_manifest
from fractal_model.parallel.ray_cluster import ray_cluster
from fractal_model.training.job import PreviewInputs, Report, TrainingJob, ValidationPoint
from fractal_model.training.ray_train.run import run_training

GOALS = {"step": 1.02, "total": 1.10}
"""Largest ratios of the times with validation to those without it."""


def make_job(folder: Path, epochs: int, validate_every: int, preview_every: int) -> TrainingJob:
    """A training of digits whose files are all in `folder`."""
    params = load_params(DEFAULT_FILE)
    size = params.size("digits")
    data = params.dataset_folder("digits")
    manifest = read_manifest(data)
    recipe = size.training
    validation = recipe.validation.model_copy(update={"preview_every": preview_every})
    changes = {
        "epochs": epochs,
        "warmup_epochs": min(recipe.warmup_epochs, epochs),
        "validate_every_epochs": validate_every,
        "validation": validation,
    }
    return TrainingJob(
        size="digits",
        model=size.model,
        recipe=recipe.model_copy(update=changes),
        data=Path(data).absolute(),
        storage=str(folder),
        local=folder / "local",
        fingerprint="f" * 64,
        tracking_uri="",
        run_id="",
        images=manifest.splits["train"].images,
        sampling=size.sampling,
        preview=PreviewInputs(
            evaluation=size.evaluation,
            reference=params.reference_file("digits").absolute(),
            inception_weights=params.metrics.inception_weights,
        ),
    )


def train(epochs: int, validate_every: int, preview_every: int) -> dict[str, float]:
    """Train once; return the seconds of a step, of the whole, and of the validations."""
    reports: list[Report] = []
    points: list[ValidationPoint] = []
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(Path(folder), epochs, validate_every, preview_every)
        started = time.monotonic()
        run_training(
            job,
            on_report=reports.append,
            on_point=lambda point, grids: points.append(point),
        )
        total = time.monotonic() - started
    if validate_every and not points:
        raise FractalError("no validation gave a point: look at the workers' logs")
    speed = statistics.median(report.images_per_second for report in reports[2:])
    for point in points:
        if point.failure is not None:
            raise FractalError(f"a validation failed: {point.failure}")
    return {
        "step": job.recipe.batch_size / speed,
        "total": total,
        "points": len(points),
        "validation": sum(point.seconds for point in points),
    }


def main(
    pairs: Annotated[int, typer.Option(help="Number of pairs of trainings.")] = 3,
    epochs: Annotated[int, typer.Option(help="Epochs of each training.")] = 22,
    preview_every: Annotated[
        int, typer.Option(help="Validations from one preview FID to the next; 0: none.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure the cost of validation in pairs of trainings."""
    every = load_params(DEFAULT_FILE).size("digits").training.validate_every_epochs
    off, on = [], []
    with ray_cluster(cpus=2):
        train(1, 0, 0)  # Starts Ray's processes and fills the disk's cache.
        for _ in range(pairs):
            off.append(train(epochs, 0, 0))
            on.append(train(epochs, every, preview_every))
    ratios = {
        name: statistics.median(a[name] / b[name] for a, b in zip(on, off, strict=True))
        for name in GOALS
    }
    if as_json:
        console.print_json(json.dumps({"off": off, "on": on, "ratios": ratios}))
    else:
        table = Table("seconds", "without", "with", "ratio", "goal")
        for name, goal in GOALS.items():
            medians = (statistics.median(run[name] for run in runs) for runs in (off, on))
            cells = (f"{value:.4g}" for value in medians)
            table.add_row(name, *cells, f"{ratios[name]:.3f}", f"{goal:.2f}")
        console.print(table)
        console.print(f"{on[0]['points']:g} points in {on[0]['validation']:.1f} s")
    if any(ratios[name] > goal for name, goal in GOALS.items()):
        raise typer.Exit(1)


if __name__ == "__main__":
    with errors_on_one_line():
        typer.run(main)
