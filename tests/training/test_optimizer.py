"""Muon for the matrices of the blocks, AdamW for all other parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fractal_model.checkpoints.checkpoint import Checkpoint, Progress
from fractal_model.common.errors import FractalError
from fractal_model.costs.training_memory import optimizer_bytes
from fractal_model.training.optimizer import new_optimizer
from tests.support import tiny_model
from tests.support.recipes import BATCH, RECIPE, trainer, weights

MUON = RECIPE.model_copy(update={"optimizer": "muon"})
RATE = MUON.peak_learning_rate
KINDS = ("ar", "mar", "guided")


def is_hidden(name: str) -> bool:
    return ".blocks." in name and name.endswith("weight") and "norm" not in name


def set_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
def test_two_steps_equal_those_of_muon_on_single_matrices_and_of_adamw(kind):
    model = tiny_model(kind)
    alone = {}
    for name, parameter in model.named_parameters():
        pieces = parameter.detach().chunk(3 if "qkv.weight" in name else 1)
        alone[name] = [nn.Parameter(piece.clone()) for piece in pieces]
    matrices = [p for name, pieces in alone.items() if is_hidden(name) for p in pieces]
    others = [(name, p) for name, (p, *_) in alone.items() if not is_hidden(name)]
    decays = [[p for n, p in others if p.ndim > 1 and ".biases." not in n]]
    decays.append([p for n, p in others if p.ndim == 1 or ".biases." in n])
    muon = torch.optim.Muon(matrices, RATE, RECIPE.weight_decay, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        [{"params": decays[0]}, {"params": decays[1], "weight_decay": 0.0}],
        lr=RATE,
        betas=RECIPE.betas,
        weight_decay=RECIPE.weight_decay,
        fused=True,
    )
    ours = new_optimizer(model, MUON)
    for step in range(2):
        set_gradients(model, step)
        for name, parameter in model.named_parameters():
            for piece, gradient in zip(
                alone[name], parameter.grad.chunk(len(alone[name])), strict=True
            ):
                piece.grad = gradient.clone()
        for optimizer in (ours, muon, adamw):
            optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.equal(torch.cat([p.detach() for p in alone[name]])), name


def test_queries_keys_and_values_each_have_an_orthogonal_update():
    model = tiny_model("mar")
    attention = model.levels[0].blocks[0].attention
    before = attention.qkv.weight.detach().clone()
    recipe = MUON.model_copy(update={"weight_decay": 0.0})
    set_gradients(model, 0)
    queries, keys, _ = attention.qkv.weight.grad.chunk(3)
    queries *= 1e3  # As one matrix, queries alone would get an update.
    keys *= 1e-3
    new_optimizer(model, recipe).step()
    change = (before - attention.qkv.weight.detach()) / RATE
    for matrix in change.chunk(3):
        *values, _ = torch.linalg.svdvals(matrix) / (0.2 * len(matrix) ** 0.5)
        assert 0.5 < min(values) < max(values) < 1.3  # The smallest value of a few may stay small.
        assert matrix.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)  # as AdamW's


def test_the_state_has_the_bytes_that_the_plan_counts():
    model = tiny_model("guided")
    parameters = sum(p.numel() for p in model.parameters())
    for recipe in (RECIPE, MUON):
        optimizer = new_optimizer(model, recipe)
        set_gradients(model, 0)
        optimizer.step()
        state = optimizer.state_dict()
        parts = state.values() if recipe is MUON else [state]
        tensors = (t for part in parts for s in part["state"].values() for t in s.values())
        moments = sum(t.nbytes for t in tensors if t.ndim)
        assert moments == optimizer_bytes(model.config, parameters, recipe.optimizer)


@pytest.mark.parametrize(("ours", "theirs"), [("muon", "adamw"), ("adamw", "muon")])
def test_the_state_of_another_optimiser_is_refused_and_changes_nothing(ours, theirs):
    trained, other = trainer(optimizer=ours), trainer(optimizer=theirs, seed=1)
    before = weights(trained)
    other.step(BATCH)
    saved = Checkpoint(
        other.model.config,
        other.model.state_dict(),
        Progress(size="t", fingerprint="", position=8, steps=1),
        other.optimizer.state_dict(),
    )
    message = f"recipe is {ours}, but the checkpoint has the state of {theirs}: set optimizer"
    with pytest.raises(FractalError, match=message) as raised:
        trained.restore(saved)
    assert "\n" not in str(raised.value) and trained.position == 0
    assert all(a.equal(b) for a, b in zip(weights(trained), before, strict=True))
