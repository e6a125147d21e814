"""Measure how much the likelihood estimate varies with its masks, for three estimators.

    python -m tests.benchmarks.likelihood_variance --model outputs/… --data data/digits

The estimators have the same bound and the same number of passes. One uses one mask count for all
rows of a level in a pass, as published. One uses a separate count for every row. The third is that
of `fractal_model.model.likelihood`: counts are stratified and sub-patches divided over the passes.
The program prints the mean over independent mask seeds, its error, the standard deviation of the
data-set mean (the Monte Carlo error), and its ratio to that of the third. pytest does not collect
this program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table
from torch import Tensor

from fractal_model.checkpoints.checkpoint import load_checkpoint
from fractal_model.common.console import console, errors_on_one_line, progress_bar
from fractal_model.config.model import ModelConfig
from fractal_model.data.prepared import open_prepared
from fractal_model.model.fractal import NO_CLASS, FractalModel, MaskSource, Rows, exact_guides
from fractal_model.model.likelihood import StratifiedMasks, mask_seeds
from fractal_model.model.losses import nats_by_term
from fractal_model.model.randomness import ranks, stream_seed

MakeMasks = Callable[[ModelConfig, Sequence[int], int], list[MaskSource]]
"""Function of a model, the images' seeds and the number of passes; returns each pass's masks."""


class UnstratifiedMasks:
    """A `MaskSource` with uniform counts: one per row or, if `shared`, one for all rows."""

    def __init__(self, config: ModelConfig, seed: int, number: int, *, shared: bool) -> None:
        self._config = config
        self._shared = shared
        self._generator = torch.Generator().manual_seed(stream_seed(9, seed, number))

    def __call__(self, level: int, rows: Rows) -> Tensor:
        count, tokens = len(rows.image), self._config.levels[level].tokens
        size = (1 if self._shared else count, 1)
        counts = torch.randint(1, tokens + 1, size, generator=self._generator)
        order = ranks(torch.rand(count, tokens, generator=self._generator))
        return order < counts


def stratified_masks(config: ModelConfig, seeds: Sequence[int], passes: int) -> list[MaskSource]:
    masks = StratifiedMasks(config, seeds, passes, torch.device("cpu"))
    return [masks.mask_source(number) for number in range(passes)]


def own_count_masks(config: ModelConfig, seeds: Sequence[int], passes: int) -> list[MaskSource]:
    return [UnstratifiedMasks(config, seeds[0], k, shared=False) for k in range(passes)]


def shared_count_masks(config: ModelConfig, seeds: Sequence[int], passes: int) -> list[MaskSource]:
    return [UnstratifiedMasks(config, seeds[0], k, shared=True) for k in range(passes)]


@torch.no_grad()
def mean_bits(
    model: FractalModel, images: Tensor, *, passes: int, seed: int, make_masks: MakeMasks
) -> Tensor:
    """Return the mean bits of all images, a scalar, with one mask seed. They are one batch."""
    labels = torch.full((len(images),), NO_CLASS)
    seeds, total = mask_seeds(seed, range(len(images))), 0.0
    for masks in make_masks(model.config, seeds, passes):
        outcome = model(images, labels, masks=masks, guides=exact_guides)
        total = total + nats_by_term(outcome, len(images)).sum(1).mean()
    return total / passes / math.log(2)


ESTIMATORS: dict[str, MakeMasks] = {
    "one count a level and pass": shared_count_masks,
    "a count for every row": own_count_masks,
    "stratified, shared out": stratified_masks,
}
SHARED, STRATIFIED = "one count a level and pass", "stratified, shared out"


def main(
    model: Annotated[Path, typer.Option(help="Folder of a checkpoint.")],
    data: Annotated[Path, typer.Option(help="Folder of a prepared data set.")],
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "validation",
    images: Annotated[int, typer.Option(min=1, help="Number of images, from the first.")] = 100,
    passes: Annotated[int, typer.Option(min=1, help="Passes per estimate.")] = 16,
    seeds: Annotated[int, typer.Option(min=2, help="Number of mask seeds.")] = 20,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
) -> None:
    torch.set_num_threads(threads)
    network = load_checkpoint(model).build_model()
    pixels, _ = open_prepared(data, split).load_all()
    pixels = pixels[:images]
    means = {}
    with progress_bar("data-set means", len(ESTIMATORS) * seeds) as update:
        for name, make_masks in ESTIMATORS.items():
            estimates = []
            for seed in range(seeds):
                options = {"passes": passes, "seed": seed, "make_masks": make_masks}
                estimates.append(mean_bits(network, pixels, **options))
                update(len(means) * seeds + seed + 1)
            means[name] = torch.stack(estimates)
    title = f"{len(pixels)} images, {passes} passes, {seeds} mask seeds"
    table = Table("masks", "mean", "± error", "spread", "times stratified", title=title)
    smallest = means[STRATIFIED].std().item()
    for name, estimates in means.items():
        spread = estimates.std().item()
        error = spread / math.sqrt(seeds)
        values = (f"{estimates.mean():.4f}", f"{error:.4f}", f"{spread:.4f}")
        table.add_row(name, *values, f"{spread / smallest:.2f}")
    console.print(table)


if __name__ == "__main__":
    with errors_on_one_line():
        typer.run(main)
