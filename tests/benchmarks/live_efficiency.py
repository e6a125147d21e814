"""Compare the efficiency that a training reports with `fractal benchmark train`, in pairs.

    python -m tests.benchmarks.live_efficiency --data data/digits

Both run in this process, with one thread, the same batch and the same model; each report covers one
step, because the benchmark gives the median of single steps. The order within a pair alternates, as
the speed of a shared machine changes from minute to minute. A training under Ray Train is slower by
the time of a report, up to a quarter of a second every `log_every_steps`. The reports count the
operations that the model needs on average; the benchmark counts those that ran, with rows of
padding. pytest does not collect this program.
"""

from __future__ import annotations

import statistics
from itertools import islice
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer

from fractal_model.common.console import console, errors_on_one_line
from fractal_model.config.params import DEFAULT_FILE, Size, load_params
from fractal_model.costs.benchmark import measure, training_work
from fractal_model.costs.flops import training_flops
from fractal_model.costs.shapes import training_shares
from fractal_model.data.loader import train_loader
from fractal_model.data.prepared import PreparedSplit, open_prepared
from fractal_model.training.efficiency import peak_gflops
from fractal_model.training.meter import Meter
from fractal_model.training.trainer import Trainer

CPU = torch.device("cpu")
WARM_UP = 10


class Efficiency(NamedTuple):
    tflops: float
    mfu: float


def measure_benchmark(size: Size, batch: int, steps: int) -> Efficiency:
    """Do what `fractal benchmark train` does."""
    model, work = training_work(size.model, size.training, batch, CPU)
    precision = size.training.precision
    result = measure(
        "train", model, work, batch=batch, dtype=precision, repeats=steps, reference=False
    )
    return Efficiency(result.gflop_per_image / result.seconds_per_image / 1000, result.utilisation)


def measure_training(size: Size, split: PreparedSplit, batch: int, steps: int) -> Efficiency:
    """Train as a worker does, with a report after each step; return the reports' medians."""
    recipe = size.training.model_copy(update={"batch_size": batch, "images_per_worker": batch})
    trainer = Trainer(size.model, recipe, images=len(split))
    shares = training_shares(size.model, recipe.mask_ratio)
    operations = sum(training_flops(size.model, shares, activation_checkpointing=False)) / 1e9
    peak = peak_gflops(CPU, recipe.precision)
    meter = Meter(trainer, len(split), 1, gflop_per_image=operations, peak_gflops=peak)
    loader = train_loader(
        split,
        seed=recipe.seed,
        position=0,
        batch_size=batch,
        rank=0,
        world_size=1,
        num_workers=recipe.loader_processes,
        flip=recipe.flip,
        end_position=trainer.end_position,
    )
    reports = []
    for loaded in islice(meter.time_loading(loader), WARM_UP + steps):
        meter.add_step(trainer.step(loaded))
        reports.append(meter.finish_report(0))
    measured = [report for report in reports[WARM_UP:] if report.tflops and report.mfu]
    return Efficiency(
        statistics.median(report.tflops for report in measured),
        statistics.median(report.mfu for report in measured),
    )


def compare(
    data: Annotated[Path, typer.Option(help="Folder of the prepared data set.")],
    size: Annotated[str, typer.Option(help="Name of the size in params.yaml.")] = "digits",
    batch: Annotated[int, typer.Option(help="Images of a step.")] = 64,
    steps: Annotated[int, typer.Option(help="Steps that are measured.")] = 20,
    pairs: Annotated[int, typer.Option(help="Number of pairs.")] = 5,
    params: Annotated[Path, typer.Option(help="Path of the settings file.")] = DEFAULT_FILE,
) -> None:
    """Print both efficiencies of each pair and the median of their ratios."""
    torch.set_num_threads(1)
    settings, split = load_params(params).size(size), open_prepared(data, "train")
    ratios: list[Efficiency] = []
    for number in range(pairs):
        if number % 2:
            theirs = measure_benchmark(settings, batch, steps)
            ours = measure_training(settings, split, batch, steps)
        else:
            ours = measure_training(settings, split, batch, steps)
            theirs = measure_benchmark(settings, batch, steps)
        ratios.append(Efficiency(ours.tflops / theirs.tflops, ours.mfu / theirs.mfu))
        console.print(
            f"pair {number + 1}: training {ours.tflops:.4f} TFLOP/s, MFU {ours.mfu:.1%}; benchmark "
            f"{theirs.tflops:.4f} TFLOP/s, {theirs.mfu:.1%}; ratios {ratios[-1].tflops:.3f}, "
            f"{ratios[-1].mfu:.3f}",
            soft_wrap=True,
        )
    medians = [statistics.median(column) for column in zip(*ratios, strict=True)]
    console.print(f"medians of the ratios: TFLOP/s {medians[0]:.3f}, MFU {medians[1]:.3f}")


if __name__ == "__main__":
    with errors_on_one_line():
        typer.run(compare)
