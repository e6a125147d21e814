"""Training on a GPU. The tests are skipped on a machine without one."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from fractal_model.checkpoints.checkpoint import Progress, load_checkpoint, save_checkpoint
from fractal_model.model.kernels.attend import attend
from fractal_model.model.kernels.cross_entropy import linear_cross_entropy
from fractal_model.training.trainer import NotFiniteError, Trainer
from tests.support import random_images, tiny_config
from tests.support.recipes import BATCH, RECIPE, weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def cuda_trainer(**recipe) -> Trainer:
    changes = {"base_learning_rate": 0.3, **recipe}
    return Trainer(
        tiny_config("mar", dropout=0.1), RECIPE.model_copy(update=changes), images=16, device="cuda"
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_loss_falls(precision, compiled):
    trainer = cuda_trainer(precision=precision, compile=compiled)
    losses = [trainer.step(BATCH).loss.item() for _ in range(19)]
    assert losses[-1] < losses[0] - 0.5


def test_a_resumed_training_follows_an_uninterrupted_one(tmp_path):
    straight, first, resumed = (cuda_trainer() for _ in range(3))
    for _ in range(4):
        straight.step(BATCH)
    for _ in range(2):
        first.step(BATCH)
    save_checkpoint(
        tmp_path / "checkpoint",
        model=first.model,
        optimizer=first.optimizer.state_dict(),
        progress=Progress(size="tiny", fingerprint="f" * 64, position=16, steps=2),
    )
    resumed.restore(load_checkpoint(tmp_path / "checkpoint"))
    for _ in range(2):
        resumed.step(BATCH)
    for ours, theirs in zip(weights(resumed), weights(straight), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("positions", [3, 5])
def test_attention_takes_more_rows_than_a_cuda_grid(positions, causal):
    shape = (70_000, 2, positions, 16)
    rows = [torch.randn(shape, device="cuda", requires_grad=True) for _ in range(3)]
    with torch.autocast("cuda", torch.bfloat16):
        mixed = attend(*(x.bfloat16() for x in rows), causal=causal)
    mixed.float().square().sum().backward()
    last = [x[-1:].detach().bfloat16() for x in rows]
    torch.testing.assert_close(mixed[-1:], attend(*last, causal=causal), rtol=0.02, atol=0.02)
    assert all(bool(x.grad.isfinite().all()) and bool(x.grad[-1].any()) for x in rows)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_selective_checkpointing_changes_no_gradient(compiled, dropout):
    """The level has more positions than the kernel for short sequences takes, so its attention is
    torch's own."""
    config = tiny_config("mar", dropout=dropout, patch_sizes=(16, 2, 1))
    batch = BATCH._replace(images=random_images(8, size=16))
    norms = []
    for choice in (False, "selective"):
        changes = {"activation_checkpointing": choice, "compile": compiled}
        trained = Trainer(config, RECIPE.model_copy(update=changes), images=16, device="cuda")
        norms.append([trained.step(batch).gradient_norm.item() for _ in range(2)])
    if not (compiled and dropout):  # Code that is compiled differently draws other numbers.
        assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    assert all(norm > 0 for norm in norms[1])


def test_the_loss_in_parts_is_that_of_the_whole():
    x, weight, bias = (torch.randn(s, device="cuda") for s in ((70_000, 3, 16), (256, 16), (256,)))
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    targets, outcomes = torch.randint(256, (70_000,), device="cuda"), []
    for nats in (
        linear_cross_entropy(x[:, 1], weight, bias, targets),
        F.cross_entropy(F.linear(x[:, 1], weight, bias), targets, reduction="none"),
    ):
        outcomes.append((nats, torch.autograd.grad(nats.mean(), inputs)))
    torch.testing.assert_close(*outcomes, rtol=1e-3, atol=1e-4)


def test_a_bad_step_that_is_found_late_changes_no_weight():
    trained = cuda_trainer()
    trained.step(BATCH)
    before = [weight.clone() for weight in weights(trained)]
    moments = copy.deepcopy(trained.optimizer.state_dict()["state"])
    handle = trained.objective.register_forward_hook(lambda _, __, loss: loss * torch.nan)
    trained.start_step(BATCH)
    handle.remove()
    with pytest.raises(NotFiniteError):
        trained.start_step(BATCH)
    assert trained.position == 8
    assert all(a.equal(b) for a, b in zip(weights(trained), before, strict=True))
    torch.testing.assert_close(trained.optimizer.state_dict()["state"], moments, rtol=0, atol=0)
