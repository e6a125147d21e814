"""The workers wait for validation or measure themselves, and never for longer than allowed."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ray.train.v2.api.reported_checkpoint import ReportedCheckpointStatus as Status

from fractal_model.common.errors import FractalError
from fractal_model.config.validation import ValidationConfig
from fractal_model.training.ray_train import measurement, validation_turn
from fractal_model.training.ray_train.measurement import measure
from fractal_model.training.ray_train.rank_parts import RankParts
from fractal_model.training.ray_train.validation_points import ValidationPoints
from fractal_model.training.ray_train.validation_turn import ValidationTurn
from fractal_model.training.trainer import Trainer
from tests.support.disturbed_runs import IMAGES, VALIDATION, save_training_images
from tests.support.recipes import RECIPE, make_job

NLL = "nll_bits_per_dim"
MEASURED = VALIDATION.model_copy(update={"max_share": 1.0})


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return save_training_images(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture
def make(data, tmp_path):
    """A function that makes a turn of the only rank after the first step, in which training took
    `trained` seconds, with its job, points and notes."""

    def make_turn(trained: float = 100.0, by_workers: bool = True, **recipe: object):
        changes = {"validate_every_epochs": 1, "validation": MEASURED, "workers": 1, **recipe}
        changed = RECIPE.model_copy(update=changes)
        job = make_job(tmp_path, recipe=changed, data=data, images=IMAGES)
        trainer = Trainer(job.model, changed, images=IMAGES)
        points = ValidationPoints.of_run(job.storage, job.name)
        notes: list[str] = []
        options = {"rank": 0, "world_size": 1, "steps": 1, "add_note": notes.append}
        turn = ValidationTurn(job, trainer, points, by_workers=by_workers, **options)
        trainer.position = changed.batch_size
        turn.count_step()
        turn._began -= trained
        return SimpleNamespace(turn=turn, job=job, trainer=trainer, points=points, notes=notes)

    return make_turn


def test_the_workers_measure_what_the_task_would_measure(make):
    made = make(ema_decays=(0.5,))
    before = {name: tensor.clone() for name, tensor in made.trainer.model.state_dict().items()}
    order = made.turn.take(is_last=False)
    assert order.fn_kwargs == {"position": 8}
    point = made.points.read_measured(8)
    assert (point.step, point.epoch, point.failure) == (1, 8 / IMAGES, None)
    assert point.grids == ("samples.png", "samples_ema.png")
    assert made.points.read_grid(8, "samples.png").startswith(b"\x89PNG")
    copies = RankParts(0, 1, chunk=1, seconds=60)
    states = {"model": before, **made.trainer.averages.state()}
    models = {
        name: partial(copies.copy_model, made.job.model, state) for name, state in states.items()
    }
    expected, _ = measure(made.job, models, made.job.place(8, 1))
    assert point.metrics == pytest.approx(expected.metrics, rel=1e-6)
    assert set(point.metrics) == {
        name for key in (NLL, f"{NLL}_ema") for name in (key, f"{key}_stderr")
    }
    assert made.trainer.model.training
    after = made.trainer.model.state_dict()
    assert all(after[name].equal(tensor) for name, tensor in before.items())


def test_a_repeated_step_is_not_measured_again(make):
    made = make()
    made.turn.take(is_last=False)
    first = made.points.read_measured(8)
    assert made.turn.take(is_last=False).fn_kwargs == {"position": 8}
    assert made.points.read_measured(8) == first
    assert made.points.attempts(8) == 1


def test_measuring_ends_after_its_share_of_the_time_and_the_point_says_so(make):
    made = make(trained=1e-3, validation=VALIDATION)
    made.turn.take(is_last=False)
    point = made.points.read_measured(8)
    assert point.metrics == {}
    assert "max_share of the time between validations: lower validation.images" in point.failure


def test_a_grid_that_takes_too_long_costs_no_likelihood_and_is_not_tried_again(make, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise FractalError("too slow")

    made = make()
    monkeypatch.setattr(measurement, "draw_grid", fail)
    made.turn.take(is_last=False)
    point = made.points.read_measured(8)
    assert set(point.metrics) == {NLL, f"{NLL}_stderr"}
    assert (point.grids, point.failure) == ((), "too slow")
    made.trainer.position = 16
    made.turn.take(is_last=False)
    assert made.points.read_measured(16).failure is None


def test_memory_that_runs_out_gives_a_point_with_the_reason(make, monkeypatch):
    def run_out(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    made = make()
    monkeypatch.setattr(made.trainer.model.__class__, "load_state_dict", run_out)
    made.turn.take(is_last=False)
    assert "CUDA out of memory" in made.points.read_measured(8).failure


def test_after_two_interrupted_attempts_the_run_is_not_validated_any_more(make):
    made = make()
    made.points.start(8)
    assert made.turn.take(is_last=False)  # A worker that was killed once: the point is measured.
    made = make()
    made.trainer.position = 16
    made.points.start(16)
    made.points.start(16)
    assert not made.turn.take(is_last=False)
    assert "there are no more in this run" in made.points.read(16).failure
    made.trainer.position = 24
    assert not made.turn.take(is_last=False)
    assert made.points.positions() == [8, 16]


def test_a_storage_that_fails_does_not_end_training(make, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError("no route")

    made = make()
    monkeypatch.setattr(ValidationPoints, "_write", fail)
    assert made.turn.take(is_last=False) is False


@pytest.fixture
def waiting(monkeypatch):
    """The states of the checkpoints that Ray has stored. Each request changes the first that is
    pending, if `ends` is set."""
    states = SimpleNamespace(all=[Status.VALIDATED, Status.COMMITTED], ends=False)

    def reported(timeout: float) -> list[SimpleNamespace]:
        entries = [SimpleNamespace(status=status) for status in states.all]
        if states.ends and Status.PENDING_VALIDATION in states.all:
            states.all[states.all.index(Status.PENDING_VALIDATION)] = Status.VALIDATED
        return entries

    monkeypatch.setattr(validation_turn, "reported_checkpoints", reported)
    monkeypatch.setattr(validation_turn, "_POLL_SECONDS", 0.01)
    return states


@pytest.mark.parametrize("pending", [0, 1])
def test_a_validation_is_reported_at_once_if_few_wait(make, waiting, pending):
    waiting.all += [Status.PENDING_VALIDATION] * pending
    made = make(by_workers=False)
    assert made.turn.take(is_last=False) is True
    assert made.notes == []


def test_training_waits_until_a_validation_has_ended(make, waiting):
    waiting.all += [Status.PENDING_VALIDATION] * 4
    waiting.ends = True
    made = make(by_workers=False)
    assert made.turn.take(is_last=False) is True
    assert waiting.all.count(Status.PENDING_VALIDATION) <= 1


def test_the_wait_is_bounded_and_what_is_left_out_is_said_once(make, waiting, monkeypatch):
    """The bound: twice the timeout of 0.1 s, and a hundredth of the 20 s of training."""
    waiting.all += [Status.PENDING_VALIDATION] * 2
    validation = ValidationConfig(timeout_seconds=0.1, max_share=0.01)
    clock = SimpleNamespace(now=0.0)
    sleep = lambda seconds: setattr(clock, "now", clock.now + seconds)  # noqa: E731
    fake = SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep)
    monkeypatch.setattr(validation_turn, "time", fake)
    made = make(by_workers=False, trained=20.0, validation=validation)
    orders = [made.turn.take(is_last=False) for _ in range(20)]
    assert 0.3 < clock.now < 0.9  # It sleeps 0.2 s at a time.
    assert not any(orders) and made.turn.left_out == {8}
    assert len(made.notes) == 1 and "points are left out" in made.notes[0]
    waited = clock.now
    assert made.turn.take(is_last=True) is True  # The last weights are always measured.
    assert clock.now == waited
