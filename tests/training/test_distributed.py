"""Several ranks, over gloo: one step of the whole batch, however it is split."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from fractal_model.data.loader import Batch
from fractal_model.training.trainer import NotFiniteError, Trainer
from tests.support import random_images, tiny_config
from tests.support.recipes import RECIPE

STEADY = RECIPE.model_copy(update={"label_drop": 0.0, "workers": 1, "clip_norm": 1e-2})
BATCH = Batch(random_images(8, size=4), torch.arange(8) % 4, 100 + torch.arange(8))
"""An AR model without dropout draws nothing at random: only the split differs."""
COMPILED = {"compile": True, "activation_checkpointing": True}


def part_of(rank: int, world_size: int) -> Batch:
    chosen = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
    return Batch(*(field[chosen] for field in BATCH))


def new_trainer(rank: int = 0, world_size: int = 1, **recipe: object) -> Trainer:
    config = tiny_config("ar")
    changed = STEADY.model_copy(update=recipe)
    return Trainer(config, changed, images=16, rank=rank, world_size=world_size)


def _rank(
    rank: int, world_size: int, folder: str, bad_rank: int | None, recipe: dict[str, object]
) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    trainer = new_trainer(rank, world_size, images_per_worker=2, **recipe)
    found: dict[str, object] = {}
    if rank == bad_rank:
        trainer._loss.module.register_forward_hook(lambda module, given, loss: loss * torch.nan)
    try:
        for _ in range(2):
            report = trainer.step(part_of(rank, world_size))
            found = {"loss": report.loss, "norm": report.gradient_norm}
    except NotFiniteError as error:
        found = {"images": error.images, "position": error.position}
    torch.save({**found, "weights": trainer.model.state_dict()}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def run_ranks(world_size: int, bad_rank: int | None = None, **recipe: object) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        given = (world_size, folder, bad_rank, recipe)
        torch.multiprocessing.spawn(_rank, given, nprocs=world_size)
        return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(world_size)]


@pytest.mark.parametrize(
    "ranks",
    [{"world_size": 3}, pytest.param({"world_size": 2, **COMPILED}, marks=pytest.mark.slow)],
)
def test_ranks_make_the_step_of_one(ranks):
    """Three have unequal shares."""
    alone = new_trainer(images_per_worker=8)
    for _ in range(2):
        report = alone.step(BATCH)
    for rank in run_ranks(**ranks):
        assert rank["loss"].item() == pytest.approx(report.loss.item(), rel=1e-6)
        assert rank["norm"].item() == pytest.approx(report.gradient_norm.item(), rel=1e-4)
        for name, weight in alone.model.state_dict().items():
            torch.testing.assert_close(rank["weights"][name], weight, rtol=1e-4, atol=1e-5)


def test_what_is_not_finite_on_one_rank_is_told_by_all_before_the_step():
    untouched = new_trainer().model.state_dict()
    for rank in run_ranks(2, bad_rank=1):
        assert rank["images"] == (104, 105, 106, 107)
        assert rank["position"] == 0
        assert all(rank["weights"][name].equal(weight) for name, weight in untouched.items())


@pytest.mark.parametrize("at_a_time", [1, 3, 8])
def test_accumulation_makes_the_same_step(at_a_time):
    whole, parts = new_trainer(images_per_worker=8), new_trainer(images_per_worker=at_a_time)
    for _ in range(2):
        expected, found = whole.step(BATCH), parts.step(BATCH)
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    pairs = zip(whole.model.parameters(), parts.model.parameters(), strict=True)
    for theirs, ours in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
