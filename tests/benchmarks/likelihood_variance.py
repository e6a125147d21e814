"""How much the likelihood estimate varies with its masks, by estimator.

    python -m tests.benchmarks.likelihood_variance --model outputs/… --data data/digits

Three estimators of the same bound with the same number of passes: one mask count for all rows of
a level in a pass (as published), a count of its own for every row, and the masks that
`fractal_model.model.likelihood` uses: counts stratified, sub-patches shared out over the passes.
Prints the mean over independent mask seeds, its error, the standard deviation of the data-set mean
(the Monte Carlo error), and how many times as large it is as that of our masks. Not collected by
pytest.
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
"""From a model, the images' seeds and the number of passes to the masks of each pass."""


class UnstratifiedMasks:
    """A `MaskSource` with uniform counts: one for each row, or one for all rows of a level."""

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


def stratified(config: ModelConfig, seeds: Sequence[int], passes: int) -> list[MaskSource]:
    masks = StratifiedMasks(config, seeds, passes, torch.device("cpu"))
    return [masks.mask_source(number) for number in range(passes)]


def own_counts(config: ModelConfig, seeds: Sequence[int], passes: int) -> list[MaskSource]:
    return [UnstratifiedMasks(config, seeds[0], k, shared=False) for k in range(passes)]


def shared_counts(config: ModelConfig, seeds: Sequence[int], passes: int) -> list[MaskSource]:
    return [UnstratifiedMasks(config, seeds[0], k, shared=True) for k in range(passes)]


@torch.no_grad()
def mean_bits(
    model: FractalModel, images: Tensor, *, passes: int, seed: int, make_masks: MakeMasks
) -> Tensor:
    """The data-set mean of one mask seed, a scalar: all images in one batch."""
    labels = torch.full((len(images),), NO_CLASS)
    seeds, total = mask_seeds(seed, range(len(images))), 0.0
    for masks in make_masks(model.config, seeds, passes):
        outcome = model(images, labels, masks=masks, guides=exact_guides)
        total = total + nats_by_term(outcome, len(images)).sum(1).mean()
    return total / passes / math.log(2)


ESTIMATORS: dict[str, MakeMasks] = {
    "one count a level and pass": shared_counts,
    "a count for every row": own_counts,
    "stratified, shared out": stratified,
}
SHARED, STRATIFIED = "one count a level and pass", "stratified, shared out"


def main(
    model: Annotated[Path, typer.Option(help="A checkpoint folder.")],
    data: Annotated[Path, typer.Option(help="A prepared data set.")],
    split: str = "validation",
    images: Annotated[int, typer.Option(min=1, help="The first so many.")] = 100,
    passes: Annotated[int, typer.Option(min=1)] = 16,
    seeds: Annotated[int, typer.Option(min=2)] = 20,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    torch.set_num_threads(threads)
    network = load_checkpoint(model).build_model()
    pixels, _ = open_prepared(data, split).load_all()
    pixels = pixels[:images]
    means = {}
    with progress_bar("data-set means", len(ESTIMATORS) * seeds) as update:
        for name, make_masks in ESTIMATORS.items():
            found = []
            for seed in range(seeds):
                options = {"passes": passes, "seed": seed, "make_masks": make_masks}
                found.append(mean_bits(network, pixels, **options))
                update(len(means) * seeds + seed + 1)
            means[name] = torch.stack(found)
    title = f"{len(pixels)} images, {passes} passes, {seeds} mask seeds"
    table = Table("masks", "mean", "± error", "spread", "times stratified", title=title)
    smallest = means[STRATIFIED].std().item()
    for name, found in means.items():
        spread = found.std().item()
        error = spread / math.sqrt(seeds)
        values = (f"{found.mean():.4f}", f"{error:.4f}", f"{spread:.4f}")
        table.add_row(name, *values, f"{spread / smallest:.2f}")
    console.print(table)


if __name__ == "__main__":
    with errors_on_one_line():
        typer.run(main)
