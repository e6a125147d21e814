"""Measure what training gains if it starts from an existing model, on the digits.

    python -m tests.benchmarks.fine_tuning

For each seed it trains, with the recipe of `digits` and one worker without Ray:

- a model from random weights: the reference of both experiments;
- from that model, the same classes with a lower learning rate: its loss of the first epochs, beside
  that of the reference's last epochs;
- a model of nine digits and, from it, one of all ten in a share of the reference's steps: the
  held-out bits per dimension of the tenth digit, beside those of the reference, and of a training
  from random weights in as many steps.

The program prints means and standard errors over the seeds. pytest does not collect this program.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from rich.table import Table

from fractal_model.common.console import console, errors_on_one_line
from fractal_model.config.params import Size, load_params
from fractal_model.data.digits import CLASS_NAMES, RESOLUTION, digits_splits
from fractal_model.data.loader import train_loader
from fractal_model.data.prepared import PreparedSplit, open_prepared
from fractal_model.data.writing import write_prepared
from fractal_model.evaluation.measure_likelihood import measure_likelihood
from fractal_model.model.fractal import FractalModel
from fractal_model.training.start import adapt_classes
from fractal_model.training.trainer import Trainer
from tests.support.params import SHIPPED

HELD_OUT, PASSES = 297, 16
TENTH = 9
LAST_EPOCHS = 3
"""Number of the reference's last epochs, and of the first ones of its continuation."""


class Trained(NamedTuple):
    """A trained model and the mean training loss of each of its epochs, in nats."""

    model: FractalModel
    losses: list[float]


class Outcome(NamedTuple):
    """Numbers of one seed."""

    reference_loss: float
    continued_losses: list[float]
    reference_bits: float
    tuned_bits: float
    short_bits: float
    reference_steps: int
    tuned_steps: int


def write_digits(folder: Path, classes: int) -> None:
    """Write the first `classes` digits as a prepared data set."""
    splits = digits_splits(validation_images=HELD_OUT, seed=0)
    write_prepared(
        folder,
        dataset=folder.name,
        source="scikit-learn load_digits",
        preprocessing="none",
        resolution=RESOLUTION,
        class_names=CLASS_NAMES[:classes],
        splits={
            name: [pair for pair in part if pair[1] < classes] for name, part in splits.items()
        },
    )


def train(
    size: Size,
    data: Path,
    start: FractalModel | None = None,
    *,
    seed: int,
    epochs: int | None = None,
    rate: float = 1.0,
    last: int | None = None,
) -> Trained:
    """Train on the data set in `data`, from random weights or from those of `start`. `epochs`: None
    means as many as in the recipe; `rate` is a factor of its learning rate. Training stops after
    the epoch `last` of these; None: after all."""
    split, recipe = open_prepared(data, "train"), size.training
    epochs = epochs or recipe.epochs
    changes = {
        "seed": seed,
        "epochs": epochs,
        "warmup_epochs": max(1, recipe.warmup_epochs * epochs // recipe.epochs),
        "base_learning_rate": recipe.base_learning_rate * rate,
        "images_per_worker": recipe.batch_size,
    }
    recipe = recipe.model_copy(update=changes)
    names = split.manifest.class_names
    model = size.model.model_copy(update={"num_classes": len(names), "class_names": names})
    weights = None if start is None else adapt_classes(start, model, seed).state_dict()
    trainer = Trainer(
        model, recipe, images=len(split), start=None if weights is None else lambda: weights
    )
    last, batch_size = last or epochs, recipe.batch_size
    loader = train_loader(
        split, seed=seed, position=0, batch_size=batch_size, end_position=last * len(split)
    )
    losses = [trainer.step(batch).loss.item() for batch in loader]
    per_epoch = len(losses) / last
    by_epoch = [losses[round(e * per_epoch) : round((e + 1) * per_epoch)] for e in range(last)]
    return Trained(trainer.model.eval(), list(map(statistics.fmean, by_epoch)))


def bits_of_the_tenth(model: FractalModel, split: PreparedSplit) -> float:
    """Mean bits per dimension of the held-out images of the tenth digit, given their class."""
    _, labels = split.load_all()
    images = (torch.as_tensor(labels) == TENTH).nonzero().flatten().tolist()
    measure = partial(measure_likelihood, model, split, lambda done: None)
    return measure(passes=PASSES, seed=0, conditional=True, images=images).mean


def measure_seed(seed: int, folder: Path, rate: float, low_rate: float, share: float) -> Outcome:
    torch.set_num_threads(1)
    size, ten, nine = load_params(SHIPPED).size("digits"), folder / "ten", folder / "nine"
    held_out = open_prepared(ten, "validation")
    epochs = math.floor(size.training.epochs * share)
    reference = train(size, ten, seed=seed)
    continued = train(
        size, ten, reference.model, seed=seed + 100, epochs=epochs, rate=low_rate, last=LAST_EPOCHS
    )
    tuned = train(
        size, ten, train(size, nine, seed=seed).model, seed=seed, epochs=epochs, rate=rate
    )
    short = train(size, ten, seed=seed, epochs=epochs)
    images, batch = len(open_prepared(ten, "train")), size.training.batch_size
    return Outcome(
        reference_loss=statistics.fmean(reference.losses[-LAST_EPOCHS:]),
        continued_losses=continued.losses,
        reference_bits=bits_of_the_tenth(reference.model, held_out),
        tuned_bits=bits_of_the_tenth(tuned.model, held_out),
        short_bits=bits_of_the_tenth(short.model, held_out),
        reference_steps=math.ceil(size.training.epochs * images / batch),
        tuned_steps=math.ceil(epochs * images / batch),
    )


def with_error(values: Sequence[float], digits: int = 4) -> tuple[str, str]:
    """Mean and standard error over the seeds."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):.{digits}f}", f"{error:.{digits}f}"


def report(outcomes: Sequence[Outcome]) -> None:
    table = Table("quantity", "mean", "± error", title=f"{len(outcomes)} seeds")

    def add(name: str, values: Sequence[float]) -> None:
        table.add_row(name, *with_error(values))

    add(f"loss of the reference, last {LAST_EPOCHS} epochs", [o.reference_loss for o in outcomes])
    for epoch in range(LAST_EPOCHS):
        add(
            f"loss of its continuation in epoch {epoch + 1}, ratio",
            [o.continued_losses[epoch] / o.reference_loss for o in outcomes],
        )
    first = outcomes[0]
    for name, values, steps in (
        ("random weights", [o.reference_bits for o in outcomes], first.reference_steps),
        ("nine digits", [o.tuned_bits for o in outcomes], first.tuned_steps),
        ("random weights", [o.short_bits for o in outcomes], first.tuned_steps),
    ):
        add(f"bits/dim of the tenth digit from {name}, {steps} steps", values)
    gains = [o.reference_bits - o.tuned_bits for o in outcomes]
    add(f"gain of {first.tuned_steps} steps from nine digits, bits/dim", gains)
    console.print(table)


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 3,
    processes: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 2,
    rate: Annotated[float, typer.Option(help="Factor of the learning rate, new class.")] = 0.5,
    low_rate: Annotated[float, typer.Option(help="The same for equal classes.")] = 0.05,
    share: Annotated[float, typer.Option(help="Share of the reference's epochs.")] = 1 / 3,
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        for name, classes in (("ten", 10), ("nine", 9)):
            write_digits(Path(scratch) / name, classes)
        options = {"folder": Path(scratch), "rate": rate, "low_rate": low_rate, "share": share}
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            report(list(pool.map(partial(measure_seed, **options), range(seeds))))


if __name__ == "__main__":
    with errors_on_one_line():
        typer.run(main)
