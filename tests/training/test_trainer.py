"""The trainer of one worker, without Ray."""

from __future__ import annotations

from pathlib import Path

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
from fractal_model.model.blocks import KEPT, KEPT_WITHOUT_DROPOUT
from fractal_model.model.kernels import attend
from fractal_model.training.trainer import NotFiniteError, Trainer, step_seed
from tests.support import random_images, tiny_config
from tests.support.recipes import BATCH, RECIPE, trainer, weights


@pytest.mark.parametrize(
    "options",
    [{}, {"optimizer": "muon"}, {"mask_ratio": "uniform", "context_noise": 0.1}],
)
def test_the_loss_falls(options):
    trained = trainer(base_learning_rate=0.3, **options)
    losses = [trained.step(BATCH).loss.item() for _ in range(19)]
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("choice", ["everywhere", "selective", "some levels"])
def test_activation_checkpointing_changes_no_gradient(kind, choice, qk_norm):
    """Dropout is on, so a recomputed block must draw the same random numbers."""
    config = tiny_config(kind, dropout=0.1, qk_norm=qk_norm)
    levels = len(config.levels)
    by_level = {
        "everywhere": True,
        "selective": "selective",
        "some levels": (True, *("selective", False)[: levels - 1], True),
    }
    plain, checkpointed = (
        Trainer(config, RECIPE.model_copy(update={"activation_checkpointing": entry}), images=16)
        for entry in (False, by_level[choice])
    )
    if choice == "some levels":
        blocks = [
            level.blocks[0] for level in (*checkpointed.model.levels, checkpointed.model.pixel)
        ]
        assert tuple(block.recompute for block in blocks) == by_level[choice]
    side = plain.model.config.image_size
    batch = BATCH._replace(images=random_images(8, size=side))
    for _ in range(2):
        assert plain.step(batch).gradient_norm == checkpointed.step(batch).gradient_norm
    assert all(a.equal(b) for a, b in zip(weights(plain), weights(checkpointed), strict=True))


OPTIONS = {"optimizer": "muon", "mask_ratio": "uniform", "context_noise": 0.2}


@pytest.mark.parametrize(
    ("decays", "options"),
    [((), {}), ((0.9,), {}), ((0.5, 0.9, 0.999), {}), ((), OPTIONS)],
)
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(tmp_path, decays, options):
    straight = trainer(ema_decays=decays, **options)
    for _ in range(3):
        straight.step(BATCH)
    save_checkpoint(
        tmp_path / "c",
        model=straight.model,
        optimizer=straight.optimizer.state_dict(),
        progress=Progress(size="t", fingerprint="", position=straight.position, steps=3),
        averages=straight.averages.state(),
    )
    for _ in range(3):
        straight.step(BATCH)
    torch.manual_seed(99)  # the global random state of another process
    resumed, saved = trainer(ema_decays=decays, **options), load_checkpoint(tmp_path / "c")
    resumed.restore(saved)
    for _ in range(3):
        resumed.step(BATCH)
    assert resumed.position == straight.position == 48
    assert all(a.equal(b) for a, b in zip(weights(resumed), weights(straight), strict=True))
    ours, theirs = resumed.averages.state(), straight.averages.state()
    assert list(ours) == list(theirs) == [f"ema-{decay}" for decay in decays]
    assert all(ours[name][key].equal(theirs[name][key]) for name in ours for key in ours[name])


def test_a_training_that_continues_after_skipped_batches_alone_copies_the_weights_first():
    straight, resumed = trainer(ema_decays=(0.9,)), trainer(ema_decays=(0.9,))
    straight.skip_batch()
    progress = Progress(size="t", fingerprint="", position=8, steps=1, skipped=(0, 40))
    states = (straight.model.state_dict(), straight.optimizer.state_dict())
    resumed.restore(
        Checkpoint(straight.model.config, states[0], progress, states[1], straight.averages.state())
    )
    for each in (straight, resumed):
        each.step(BATCH)
    averages = resumed.averages.state()["ema-0.9"]
    assert all(averages[name].equal(p) for name, p in resumed.model.named_parameters())
    assert all(averages[k].equal(v) for k, v in straight.averages.state()["ema-0.9"].items())


def test_a_checkpoint_without_an_average_of_the_recipe_changes_nothing():
    trained, other = trainer(ema_decays=(0.9, 0.99)), trainer(seed=1, ema_decays=(0.9,))
    before = weights(trained)
    progress = Progress(size="t", fingerprint="", position=48, steps=6)
    saved = Checkpoint(
        other.model.config,
        other.model.state_dict(),
        progress,
        other.optimizer.state_dict(),
        other.averages.state(),
    )
    with pytest.raises(FractalError, match=r"needs the moving averages ema-0\.99 .*has ema-0\.9:"):
        trained.restore(saved)
    assert trained.position == 0
    assert all(a.equal(b) for a, b in zip(weights(trained), before, strict=True))


def test_a_checkpoint_without_optimiser_state_is_refused(tmp_path):
    trained = trainer()
    before = weights(trained)
    other = trainer(seed=1).model
    progress = Progress(size="t", fingerprint="", position=48, steps=6)
    imported = Checkpoint(other.config, other.state_dict(), progress, optimizer=None)
    with pytest.raises(FractalError, match="without optimiser state"):
        trained.restore(imported)
    assert trained.position == 0
    assert all(a.equal(b) for a, b in zip(weights(trained), before, strict=True))


def test_bfloat16_trains_float32_weights():
    trained = trainer(precision="bfloat16")
    before = weights(trained)
    trained.step(BATCH)
    report = trained.step(BATCH)
    assert report.loss.isfinite()
    assert any(not a.equal(b) for a, b in zip(before, weights(trained), strict=True))
    assert all(p.dtype == torch.float32 for p in trained.model.parameters())


def test_the_gradient_is_clipped():
    trained = trainer(clip_norm=1e-3)
    report = trained.step(BATCH)
    norms = torch.stack([p.grad.norm() for p in trained.model.parameters()])
    assert report.gradient_norm > 1e-2
    assert norms.norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_a_loss_that_is_not_finite_changes_no_weight():
    trained = trainer()
    with torch.no_grad():
        trained.model.null_embedding.fill_(float("nan"))
        trained.model.class_embedding.weight.fill_(float("nan"))
    before = trained.model.pixel.codebooks[0].weight.detach().clone()
    with pytest.raises(NotFiniteError, match=r"step 0 .*\[0, 1, 2, 3, 4, 5, 6, 7\]") as raised:
        trained.step(BATCH)
    assert (raised.value.position, raised.value.images) == (0, tuple(range(8)))
    assert trained.model.pixel.codebooks[0].weight.equal(before)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("bad", [0, 1, 3])
def test_a_step_that_is_confirmed_late_leaves_no_trace_if_it_was_bad(optimizer, bad):
    """`bad`: number of the step whose gradient is not finite."""
    late, plain = (trainer(ema_decays=(0.5,), optimizer=optimizer) for _ in "ab")
    for trained in (late, plain):
        trained.objective.register_forward_hook(
            lambda _, __, loss, trained=trained: loss * (torch.nan if trained.steps == bad else 1)
        )
    skipped, returned_to = [], []
    while late.position < 40:
        try:
            if late.position in skipped:
                late.skip_batch()
            else:
                late.start_step(BATCH)
            if late.position >= 40:
                late.finish_step()
        except NotFiniteError as error:
            skipped.append(error.position)
            returned_to.append(late.position)
    for step in range(5):
        if step == bad:
            plain.skip_batch()
        else:
            plain.step(BATCH)
    assert skipped == returned_to == [bad * len(BATCH.labels)]
    assert all(a.equal(b) for a, b in zip(weights(late), weights(plain), strict=True))
    states = []
    for trained in (late, plain):
        stored = trained.optimizer.state_dict()
        moments = [part["state"] for part in ([stored] if "state" in stored else stored.values())]
        states.append((moments, trained.averages.state()))
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_a_started_step_gives_its_report_with_the_next_one():
    late, plain = trainer(), trainer()
    reports = [late.start_step(BATCH) for _ in range(3)] + [late.finish_step()]
    assert reports[0] is None and late.finish_step() is None
    for report in reports[1:]:
        expected = plain.step(BATCH)
        assert report.loss.equal(expected.loss)
        assert report.gradient_norm.equal(expected.gradient_norm)
        assert report.learning_rate == expected.learning_rate


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_reset_trainer_equals_a_new_one(optimizer):
    trained, fresh = (trainer(ema_decays=(0.9, 0.5), optimizer=optimizer) for _ in "ab")
    for _ in range(2):
        trained.step(BATCH)
    trained.reset()
    assert trained.position == 0
    for _ in range(3):
        assert trained.step(BATCH).loss.equal(fresh.step(BATCH).loss)
    assert all(a.equal(b) for a, b in zip(weights(trained), weights(fresh), strict=True))
    ours, theirs = trained.averages.state(), fresh.averages.state()
    assert all(ours[name][key].equal(theirs[name][key]) for name in theirs for key in theirs[name])


@pytest.mark.parametrize("decays", [(), (0.9, 0.99)])
def test_training_starts_and_is_reset_to_the_given_weights(decays):
    first = trainer(seed=5).model.state_dict()
    recipe = RECIPE.model_copy(update={"ema_decays": decays})
    config = tiny_config("mar", dropout=0.1)
    started, replayed = (Trainer(config, recipe, images=16, start=lambda: first) for _ in "ab")
    assert all(weight.equal(first[name]) for name, weight in started.model.state_dict().items())
    assert not started.optimizer.state and started.position == 0
    losses = [started.step(BATCH).loss for _ in range(3)]
    replayed.step(BATCH)
    replayed.reset()
    for weights_now in (replayed.model.state_dict(), *replayed.averages.state().values()):
        assert all(weight.equal(first[name]) for name, weight in weights_now.items())
    assert [replayed.step(BATCH).loss for _ in range(3)] == losses


def test_a_skipped_batch_moves_the_position():
    trained, before = trainer(), weights(trainer())
    trained.skip_batch()
    assert trained.position == 8 and trained.steps == 1
    assert all(a.equal(b) for a, b in zip(weights(trained), before, strict=True))


def test_the_operations_that_selective_checkpointing_names_exist():
    own = Path(attend.__file__).with_name("short_attention.py").read_text()  # It needs Triton.
    for name in (*KEPT, *KEPT_WITHOUT_DROPOUT):
        space, operation = name.split("::")
        if space == "fractal":
            assert f'custom_op("{name}"' in own
        else:
            assert hasattr(getattr(torch.ops, space), operation), name


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [True, "selective"])
@pytest.mark.parametrize("kind", ["ar", "guided"])
def test_compiled_blocks_give_the_losses_of_plain_ones(kind, checkpointing):
    counters.clear()
    config = tiny_config(kind, dropout=0.0)
    batch = BATCH._replace(images=random_images(8, size=config.image_size))
    changes = {"compile": True, "activation_checkpointing": checkpointing}
    compiled = RECIPE.model_copy(update=changes)
    losses = []
    for recipe in (RECIPE, compiled):
        trained = Trainer(config, recipe, images=16)
        losses.append([trained.step(batch).loss.item() for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert not counters["graph_break"]


@pytest.mark.slow
def test_recomputed_compiled_blocks_drop_the_same_values():
    config = tiny_config("guided", dropout=0.5)
    batch = BATCH._replace(images=random_images(8, size=config.image_size))
    losses = []
    for checkpointing in (False, True):
        changes = {"compile": True, "activation_checkpointing": checkpointing}
        trained = Trainer(config, RECIPE.model_copy(update=changes), images=16)
        losses.append([trained.step(batch).loss.item() for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0][2] != pytest.approx(losses[0][0], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ar", "guided"])
def test_the_gradient_of_compiled_selective_blocks_is_the_slope_of_the_loss(kind):
    """Dropout is on, so forward and backward pass must drop the same values."""
    config = tiny_config(kind, dropout=0.5)
    changes = {"compile": True, "activation_checkpointing": "selective"}
    trained = Trainer(config, RECIPE.model_copy(update=changes), images=16)
    images = random_images(8, size=config.image_size)
    parameters = list(trained.model.parameters())

    def loss() -> torch.Tensor:
        torch.manual_seed(0)
        return trained.objective(images, BATCH.labels, torch.Generator().manual_seed(0))

    loss().backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    directions = [p.grad / norm for p in parameters]
    step, losses = 0.02, []
    for change in (step, -2 * step):
        with torch.no_grad():
            torch._foreach_add_(parameters, directions, alpha=change)
        losses.append(loss().item())
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(norm.item(), rel=0.02)


def test_a_missing_compiler_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(FractalError, match="is not on the PATH: install a C.. compiler"):
        trainer(compile=True)


def test_biases_and_norms_do_not_decay():
    trained = trainer("guided")
    decaying = {id(p) for p in trained.optimizer.param_groups[0]["params"]}
    for name, parameter in trained.model.named_parameters():
        is_matrix = parameter.ndim > 1 and ".biases." not in name
        assert (id(parameter) in decaying) == is_matrix, name
    assert trained.optimizer.param_groups[1]["weight_decay"] == 0


def test_label_drop_decides_which_embedding_learns():
    """If every label is dropped, the classes get no gradient; if none is, the null embedding."""
    trained = trainer(label_drop=1.0)
    trained.step(BATCH)
    assert not trained.model.class_embedding.weight.grad.any()
    trained = trainer(label_drop=0.0)
    trained.step(BATCH)
    assert not trained.model.null_embedding.grad.any()


def test_step_seeds_differ():
    seeds = {step_seed(0, step, rank) for step in range(20) for rank in range(20)}
    assert len(seeds) == 400
