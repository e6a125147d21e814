"""One worker's training, without Ray."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from fractal_model.checkpoints.checkpoint import (
    Checkpoint,
    Progress,
    load_checkpoint,
    save_checkpoint,
)
from fractal_model.common.errors import FractalError
from fractal_model.training.trainer import NotFiniteError, Trainer, step_seed
from tests.support import random_images, tiny_config
from tests.support.recipes import BATCH, RECIPE, trainer, weights


def test_loss_falls():
    found = trainer(base_learning_rate=0.3)
    losses = [found.step(BATCH).loss.item() for _ in range(19)]
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("choice", ["everywhere", "some levels"])
def test_activation_checkpointing_changes_no_gradient(kind, choice):
    """Dropout is on: what is computed again must draw the same numbers."""
    plain, checkpointed = (
        Trainer(
            tiny_config(kind, dropout=0.1),
            RECIPE.model_copy(update={"activation_checkpointing": on}),
            images=16,
        )
        for on in (False, True)
    )
    if choice == "some levels":
        levels = len(plain.model.levels)
        some = RECIPE.model_copy(
            update={"activation_checkpointing": (True,) + (False,) * (levels - 1) + (True,)}
        )
        checkpointed = Trainer(tiny_config(kind, dropout=0.1), some, images=16)
        assert [block.recompute for block in checkpointed.model.levels[0].blocks] == [True]
        assert [b.recompute for lv in checkpointed.model.levels[1:] for b in lv.blocks] == [
            False
        ] * (levels - 1)
    side = plain.model.config.image_size
    batch = BATCH._replace(images=random_images(8, size=side))
    for _ in range(2):
        assert plain.step(batch).gradient_norm == checkpointed.step(batch).gradient_norm
    assert all(a.equal(b) for a, b in zip(weights(plain), weights(checkpointed), strict=True))


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, ema_decay):
    straight = trainer(ema_decay=ema_decay)
    for _ in range(3):
        straight.step(BATCH)
    save_checkpoint(
        tmp_path / "c",
        model=straight.model,
        optimizer=straight.optimizer.state_dict(),
        progress=Progress(size="t", fingerprint="", position=straight.position, steps=3),
        ema=straight.ema,
    )
    for _ in range(3):
        straight.step(BATCH)
    torch.manual_seed(99)  # the global random state of another process
    resumed, saved = trainer(ema_decay=ema_decay), load_checkpoint(tmp_path / "c")
    resumed.restore(saved)
    for _ in range(3):
        resumed.step(BATCH)
    assert resumed.position == straight.position == 48
    assert all(a.equal(b) for a, b in zip(weights(resumed), weights(straight), strict=True))
    if ema_decay:
        averages = (resumed.ema.parameters(), straight.ema.parameters())
        assert all(a.equal(b) for a, b in zip(*averages, strict=True))


def test_moving_average_of_the_weights():
    found = trainer(ema_decay=0.9)
    expected = None
    for _ in range(4):
        found.step(BATCH)
        now = weights(found)
        pairs = zip(expected or now, now, strict=True)
        expected = [0.9 * average + 0.1 * weight for average, weight in pairs]
    for ours, theirs in zip(found.ema.parameters(), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert trainer().ema is None


def test_training_does_not_go_on_without_optimiser_state(tmp_path):
    found = trainer()
    before = weights(found)
    other = trainer(seed=1).model
    progress = Progress(size="t", fingerprint="", position=48, steps=6)
    imported = Checkpoint(other.config, other.state_dict(), progress, optimizer=None)
    with pytest.raises(FractalError, match="without optimiser state"):
        found.restore(imported)
    assert found.position == 0
    assert all(a.equal(b) for a, b in zip(weights(found), before, strict=True))


def test_bfloat16_trains_too():
    found = trainer(precision="bfloat16")
    before = weights(found)
    found.step(BATCH)
    report = found.step(BATCH)
    assert report.loss.isfinite()
    assert any(not a.equal(b) for a, b in zip(before, weights(found), strict=True))
    assert all(p.dtype == torch.float32 for p in found.model.parameters())


def test_gradient_is_clipped():
    found = trainer(clip_norm=1e-3)
    report = found.step(BATCH)
    norms = torch.stack([p.grad.norm() for p in found.model.parameters()])
    assert report.gradient_norm > 1e-2
    assert norms.norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_not_finite_stops_before_the_step():
    found = trainer()
    with torch.no_grad():
        found.model.null_embedding.fill_(float("nan"))
        found.model.class_embedding.weight.fill_(float("nan"))
    before = found.model.pixel.codebooks[0].weight.detach().clone()
    with pytest.raises(NotFiniteError, match=r"step 0 .*\[0, 1, 2, 3, 4, 5, 6, 7\]") as caught:
        found.step(BATCH)
    assert (caught.value.position, caught.value.images) == (0, tuple(range(8)))
    assert found.model.pixel.codebooks[0].weight.equal(before)


def test_beginning_again_forgets_everything():
    found, fresh = trainer(ema_decay=0.9), trainer(ema_decay=0.9)
    for _ in range(2):
        found.step(BATCH)
    found.start_again()
    assert found.position == 0
    for _ in range(3):
        assert found.step(BATCH).loss.equal(fresh.step(BATCH).loss)
    assert all(a.equal(b) for a, b in zip(weights(found), weights(fresh), strict=True))
    averages = zip(found.ema.parameters(), fresh.ema.parameters(), strict=True)
    assert all(a.equal(b) for a, b in averages)


def test_a_batch_left_out_is_counted():
    found, before = trainer(), weights(trainer())
    found.skip()
    assert found.position == 8 and found.steps == 1
    assert all(a.equal(b) for a, b in zip(weights(found), before, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ar", "guided"])
def test_compiled_blocks_train_as_plain_ones_do(kind):
    counters.clear()
    config = tiny_config(kind, dropout=0.0)
    batch = BATCH._replace(images=random_images(8, size=config.image_size))
    compiled = RECIPE.model_copy(update={"compile": True, "activation_checkpointing": True})
    found = []
    for recipe in (RECIPE, compiled):
        one = Trainer(config, recipe, images=16)
        found.append([one.step(batch).loss.item() for _ in range(3)])
    assert found[1] == pytest.approx(found[0], rel=1e-3)
    assert not counters["graph_break"]


@pytest.mark.slow
def test_what_compiled_blocks_compute_again_drops_the_same():
    config = tiny_config("guided", dropout=0.5)
    batch = BATCH._replace(images=random_images(8, size=config.image_size))
    found = []
    for checkpointing in (False, True):
        how = {"compile": True, "activation_checkpointing": checkpointing}
        one = Trainer(config, RECIPE.model_copy(update=how), images=16)
        found.append([one.step(batch).loss.item() for _ in range(3)])
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[0][2] != pytest.approx(found[0][0], rel=1e-5)


def test_without_a_compiler_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(FractalError, match="is not on the PATH: install a C.. compiler"):
        trainer(compile=True)


def test_biases_and_norms_do_not_decay():
    found = trainer("guided")
    decaying = {id(p) for p in found.optimizer.param_groups[0]["params"]}
    for name, parameter in found.model.named_parameters():
        is_matrix = parameter.ndim > 1 and ".biases." not in name
        assert (id(parameter) in decaying) == is_matrix, name
    assert found.optimizer.param_groups[1]["weight_decay"] == 0


def test_all_labels_can_be_dropped():
    """With every label dropped the classes get no gradient; with none, the null embedding."""
    found = trainer(label_drop=0.999999)
    found.step(BATCH)
    assert not found.model.class_embedding.weight.grad.any()
    found = trainer(label_drop=0.0)
    found.step(BATCH)
    assert not found.model.null_embedding.grad.any()


def test_step_seeds_differ():
    seeds = {step_seed(0, step, rank) for step in range(20) for rank in range(20)}
    assert len(seeds) == 400
