"""Ranks over gloo: a step does not depend on how its batch is split."""

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
"""Batch for an AR model without dropout, which draws nothing at random: only the split differs."""
COMPILED = {"compile": True, "activation_checkpointing": True}


def batch_share(rank: int, world_size: int) -> Batch:
    rows = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
    return Batch(*(field[rows] for field in BATCH))


def new_trainer(rank: int = 0, world_size: int = 1, **recipe: object) -> Trainer:
    config = tiny_config("ar")
    changed = STEADY.model_copy(update=recipe)
    return Trainer(config, changed, images=16, rank=rank, world_size=world_size)


def _train_rank(
    rank: int, world_size: int, folder: str, bad_rank: int | None, recipe: dict[str, object]
) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    trainer = new_trainer(rank, world_size, images_per_worker=2, **recipe)
    outcome: dict[str, object] = {}
    if rank == bad_rank:
        trainer._loss.module.register_forward_hook(lambda module, inputs, loss: loss * torch.nan)
    try:
        for _ in range(2):
            report = trainer.step(batch_share(rank, world_size))
            outcome = {"loss": report.loss, "norm": report.gradient_norm}
    except NotFiniteError as error:
        outcome = {"images": error.images, "position": error.position}
    torch.save({**outcome, "weights": trainer.model.state_dict()}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def run_ranks(world_size: int, bad_rank: int | None = None, **recipe: object) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world_size, folder, bad_rank, recipe)
        torch.multiprocessing.spawn(_train_rank, arguments, nprocs=world_size)
        return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(world_size)]


@pytest.mark.parametrize(
    "ranks",
    [{"world_size": 3}, pytest.param({"world_size": 2, **COMPILED}, marks=pytest.mark.slow)],
)
def test_several_ranks_take_the_same_step_as_one(ranks):
    """Three ranks have unequal shares of the batch."""
    alone = new_trainer(images_per_worker=8)
    for _ in range(2):
        report = alone.step(BATCH)
    for rank in run_ranks(**ranks):
        assert rank["loss"].item() == pytest.approx(report.loss.item(), rel=1e-6)
        assert rank["norm"].item() == pytest.approx(report.gradient_norm.item(), rel=1e-4)
        for name, weight in alone.model.state_dict().items():
            torch.testing.assert_close(rank["weights"][name], weight, rtol=1e-4, atol=1e-5)


def test_all_ranks_take_the_same_step_with_muon_bit_for_bit():
    first, second = run_ranks(2, optimizer="muon")
    assert all(weight.equal(second["weights"][name]) for name, weight in first["weights"].items())
    alone = new_trainer(images_per_worker=8, optimizer="muon")
    for _ in range(2):
        alone.step(BATCH)
    for name, weight in alone.model.state_dict().items():
        # Muon rounds to bfloat16, so a step differs by up to a hundredth of the rate or so.
        torch.testing.assert_close(first["weights"][name], weight, rtol=1e-3, atol=1e-4)


def test_all_ranks_raise_before_the_step_if_the_loss_of_one_is_not_finite():
    untouched = new_trainer().model.state_dict()
    for rank in run_ranks(2, bad_rank=1):
        assert rank["images"] == (104, 105, 106, 107)
        assert rank["position"] == 0
        assert all(rank["weights"][name].equal(weight) for name, weight in untouched.items())


@pytest.mark.parametrize("images_per_worker", [1, 3, 8])
def test_gradient_accumulation_takes_the_same_step(images_per_worker):
    whole = new_trainer(images_per_worker=8)
    parts = new_trainer(images_per_worker=images_per_worker)
    for _ in range(2):
        expected, report = whole.step(BATCH), parts.step(BATCH)
    assert report.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    pairs = zip(whole.model.parameters(), parts.model.parameters(), strict=True)
    for theirs, ours in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
