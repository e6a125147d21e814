"""Compare the efficiency that a training reports with `fractal benchmark train`, in pairs.

    python -m tests.benchmarks.live_efficiency --data data/digits

Both have one worker, one thread, the same batch and the same model. The order within a pair
alternates, because the speed of a shared machine changes from minute to minute. The reports count
the operations that the model needs on average; the benchmark counts those that ran, with rows of
padding. pytest does not collect this program.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from fractal_model.common.console import console, errors_on_one_line
from fractal_model.config.params import DEFAULT_FILE, Params, Size, load_params
from fractal_model.costs.flops import training_flops
from fractal_model.data.manifest import Manifest
from fractal_model.parallel.ray_cluster import ray_cluster
from fractal_model.training.job import Report, TrainingJob
from fractal_model.training.launch import load_size_and_manifest
from fractal_model.training.ray_train.run import run_training

REPORT_STEPS = 50
"""A worker waits for a quarter of a second or less until Ray has taken its report."""


class Efficiency(NamedTuple):
    tflops: float
    mfu: float


def measure_benchmark(size: str, batch: int, params: Path) -> Efficiency:
    """Run `fractal benchmark train` in another process."""
    command = [sys.executable, "-m", "fractal_model", "benchmark", "train", "--size", size]
    command += ["--batch", str(batch), "--repeats", "100", "--json", "--params", str(params)]
    result = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    gflops = result["gflop_per_image"] / result["seconds_per_image"]
    return Efficiency(gflops / 1000, result["utilisation"])


def measure_training(size: Size, manifest: Manifest, data: Path, folder: Path) -> Efficiency:
    """Train with one worker of Ray Train; return the medians over all reports but the first."""
    reports: list[Report] = []
    job = TrainingJob(
        size=size.name,
        model=size.model,
        recipe=size.training,
        data=data.resolve(),
        storage=str(folder),
        local=folder,
        fingerprint="f" * 64,
        tracking_uri="",
        run_id="benchmark",
        images=manifest.splits["train"].images,
        gflop_per_image=sum(training_flops(size.model, activation_checkpointing=False)) / 1e9,
        sampling=size.sampling,
    )
    with ray_cluster(cpus=1):
        run_training(job, on_report=reports.append)
    later = reports[1:]
    return Efficiency(
        statistics.median(report.tflops or 0.0 for report in later),
        statistics.median(report.mfu or 0.0 for report in later),
    )


def load(settings: Params, name: str, batch: int, epochs: int) -> tuple[Size, Manifest]:
    """Return the size with a recipe of one worker, without validation, and its manifest."""
    return load_size_and_manifest(
        settings,
        name,
        batch_size=batch,
        workers=1,
        epochs=epochs,
        images_per_worker=batch,
        validate_every_epochs=0,
        log_every_steps=REPORT_STEPS,
        checkpoint_every_epochs=epochs,
    )


def compare(
    data: Annotated[Path, typer.Option(help="Folder of the prepared data set.")],
    size: Annotated[str, typer.Option(help="Name of the size in params.yaml.")] = "digits",
    batch: Annotated[int, typer.Option(help="Images of a step.")] = 16,
    epochs: Annotated[int, typer.Option(help="Epochs of a training.")] = 4,
    pairs: Annotated[int, typer.Option(help="Number of pairs.")] = 3,
    params: Annotated[Path, typer.Option(help="Path of the settings file.")] = DEFAULT_FILE,
) -> None:
    """Print both efficiencies of each pair and the median of their ratios."""
    os.environ["OMP_NUM_THREADS"] = "1"
    # Ray gives its workers a low priority by default, so other programs would slow down only them.
    os.environ["RAY_worker_niceness"] = "0"
    changed, manifest = load(load_params(params), size, batch, epochs)
    ratios: list[Efficiency] = []
    for number in range(pairs):
        with tempfile.TemporaryDirectory() as folder:
            if number % 2:
                theirs = measure_benchmark(size, batch, params)
                ours = measure_training(changed, manifest, data, Path(folder))
            else:
                ours = measure_training(changed, manifest, data, Path(folder))
                theirs = measure_benchmark(size, batch, params)
        ratios.append(Efficiency(ours.tflops / theirs.tflops, ours.mfu / theirs.mfu))
        console.print(
            f"pair {number + 1}: training {ours.tflops:.4f} TFLOP/s, MFU {ours.mfu:.1%}; benchmark "
            f"{theirs.tflops:.4f} TFLOP/s, {theirs.mfu:.1%}; ratios {ratios[-1].tflops:.3f}, "
            f"{ratios[-1].mfu:.3f}"
        )
    medians = [statistics.median(column) for column in zip(*ratios, strict=True)]
    console.print(f"medians of the ratios: TFLOP/s {medians[0]:.3f}, MFU {medians[1]:.3f}")


if __name__ == "__main__":
    with errors_on_one_line():
        typer.run(compare)
