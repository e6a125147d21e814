"""Measure what moving averages of the weights cost: `python -m tests.benchmarks.moving_averages`.

Three trainers of one size keep 0, 1 and 3 averages. They take their steps in turn, so that other
work on the machine slows all of them alike. The program prints the median seconds of a step and of
the update of its averages. The share is that of the update in the step of the same round, because
on a shared machine the seconds of two steps differ by more than an update takes. It exits with
status 1 if a median share is not below LARGEST_SHARE. pytest does not collect this program.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from rich.table import Table

from fractal_model.common.console import console, errors_on_one_line, progress_bar
from fractal_model.common.devices import compute_device
from fractal_model.config.params import DEFAULT_FILE, Size, load_params
from fractal_model.data.loader import Batch
from fractal_model.training.trainer import Trainer

DECAYS: tuple[tuple[float, ...], ...] = ((), (0.999,), (0.99, 0.999, 0.9999))
LARGEST_SHARE = 0.02


class TimedTrainer:
    """A trainer that keeps the averages of `decays`, and the seconds of its steps and updates."""

    def __init__(self, size: Size, batch: int, decays: tuple[float, ...]) -> None:
        changes = {"ema_decays": decays, "batch_size": batch}
        recipe = size.training.model_copy(update=changes)
        self._device = compute_device()
        self._trainer = Trainer(size.model, recipe, images=10**6, device=self._device)
        self._update = self._trainer.averages.update
        self._trainer.averages.update = self._time_update  # type: ignore[method-assign]
        self.averages = len(decays)
        self.steps: list[float] = []
        self.updates: list[float] = []

    def step(self, batch: Batch) -> None:
        """Train on a batch and note the seconds of the step, its update included."""
        self.steps.append(self._seconds(lambda: self._trainer.step(batch)))

    @property
    def shares(self) -> list[float]:
        """Share of the update in each step after the first two, which also allocate memory."""
        return [u / s for s, u in zip(self.steps[2:], self.updates[2:], strict=True)]

    def _time_update(self) -> None:
        self.updates.append(self._seconds(self._update))

    def _seconds(self, work: Callable[[], object]) -> float:
        self._wait()
        begin = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def main(
    size: Annotated[str, typer.Option(help="Size in params.yaml.")] = "digits",
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images of a step. Default: the recipe's.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Steps of each trainer.")] = 30,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    params: Annotated[Path, typer.Option(help="The file with the settings.")] = DEFAULT_FILE,
) -> None:
    torch.set_num_threads(threads)
    settings = load_params(params).size(size)
    batch = batch or settings.training.batch_size
    trainers = [TimedTrainer(settings, batch, decays) for decays in DECAYS]
    side, classes = settings.model.image_size, settings.model.num_classes
    generator = torch.Generator().manual_seed(0)
    with progress_bar("rounds", rounds) as update:
        for number in range(rounds):
            shape = (batch, 3, side, side)
            images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            indices = torch.arange(batch)
            # Each trainer is the first as often as the others.
            for place in range(len(trainers)):
                trainer = trainers[(number + place) % len(trainers)]
                trainer.step(Batch(images, indices % classes, indices))
            update(number + 1)
    table = Table(
        "averages",
        "step, ms",
        "update, ms",
        "share",
        title=f"{size}, {batch} images, {rounds} rounds",
    )
    for trainer in trainers:
        step, cost = (1000 * median(seconds[2:]) for seconds in (trainer.steps, trainer.updates))
        share = median(trainer.shares)
        table.add_row(str(trainer.averages), f"{step:.1f}", f"{cost:.2f}", f"{share:.2%}")
    console.print(table)
    sys.exit(max(median(trainer.shares) for trainer in trainers) >= LARGEST_SHARE)


if __name__ == "__main__":
    with errors_on_one_line():
        typer.run(main)
