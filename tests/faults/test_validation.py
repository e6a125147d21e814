"""Validation beside a training: whatever happens to it, the weights stay the same."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import mlflow
import psutil
import pytest
import ray.train

from fractal_model.checkpoints.checkpoint import load_checkpoint, verify_checkpoint
from fractal_model.common.errors import FractalError
from fractal_model.config.serving import ServingConfig
from fractal_model.tracking import registration, store
from fractal_model.tracking.model_source import load_model
from fractal_model.training.job import Stopped
from fractal_model.training.ray_train.rank_parts import RankParts
from fractal_model.training.ray_train.validation_turn import ValidationTurn
from fractal_model.training.ray_train.worker import train_worker
from fractal_model.training.trainer import Trainer
from tests.faults.conftest import run_maker
from tests.support import tiny_config
from tests.support.disturbed_runs import (
    IMAGES,
    VALIDATION,
    Run,
    assert_equal,
    save_few_digits,
    training_workers,
)

NLL = "nll_bits_per_dim"
POSITIONS = [IMAGES * epoch for epoch in range(1, 7)]


def make_validated(make: Callable[..., Run], **changes: object) -> Run:
    """A run that is validated after each epoch."""
    return make(
        **{"validate_every_epochs": 1, "validation": VALIDATION, "max_failures": 3, **changes}
    )


@pytest.fixture(scope="module")
def undisturbed(data: Path, cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    # Training waits long enough for each validation, so that no point is left out.
    make = run_maker(tmp_path_factory.mktemp("undisturbed"), data)
    run = make_validated(make, stall_seconds=2 * VALIDATION.timeout_seconds)
    run.train()
    return run


def measured(run: Run) -> list[tuple[int, dict[str, float]]]:
    return [(point.position, point.metrics) for point in run.points]


def signal_validation(number: signal.Signals) -> Callable[[], None]:
    """Send a signal to the first process that validates, in a thread; return a function that waits
    for the thread and fails if there was no such process."""
    signalled: list[int] = []

    def send() -> None:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):  # It ended in the meantime.
                    if "run_validation_fn" in " ".join(process.cmdline()):
                        process.send_signal(number)
                        signalled.append(process.pid)
                        return
            time.sleep(0.01)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()

    def wait() -> None:
        thread.join()
        assert signalled

    return wait


@pytest.mark.faults
def test_each_epoch_is_measured_and_the_weights_are_those_of_a_run_without(undisturbed, straight):
    assert_equal(undisturbed.weights(), straight)
    assert [position for position, _ in measured(undisturbed)] == POSITIONS
    assert all(set(metrics) == {NLL, f"{NLL}_stderr"} for _, metrics in measured(undisturbed))
    best = min(metrics[NLL] for _, metrics in measured(undisturbed))
    record = json.loads((undisturbed.folder / "best.json").read_text())
    assert record[NLL] == best
    verify_checkpoint(undisturbed.folder / "best" / record["checkpoint"])
    assert undisturbed.registered == undisturbed.newest


OVERFITTED = {
    "model": tiny_config("ar", patch_sizes=(8, 2, 1), num_classes=10),
    "epochs": 48,
    "base_learning_rate": 0.3,
    "validate_every_epochs": 8,
    "checkpoint_every_epochs": 48,
    "register_checkpoint": "best",
    "stall_seconds": 2 * VALIDATION.timeout_seconds,
}
"""A run with AR levels on 64 digits: its held-out likelihood gets better, then worse."""


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_few_digits(tmp_path_factory.mktemp("digits") / "few", IMAGES, 32)


def make_overfitted(folder: Path, data: Path, **changes: object) -> Run:
    validation = VALIDATION.model_copy(update={"images": 32})
    return make_validated(
        run_maker(folder, data), **{"validation": validation, **OVERFITTED, **changes}
    )


def test_the_best_checkpoint_of_an_overfitted_run_is_kept_and_registered(
    few_digits, cluster, tmp_path
):
    run = make_overfitted(tmp_path, few_digits)
    run.train()
    bits = [metrics[NLL] for _, metrics in measured(run)]
    assert run.reports[-1].loss < run.reports[len(run.reports) // 4].loss
    assert min(bits) + 0.05 < min(bits[0], bits[-1])
    assert run.registered is not None and run.registered.parent == run.folder / "best"
    best = load_checkpoint(run.registered)
    assert best.progress.position == run.points[bits.index(min(bits))].position
    store.connect(tmp_path)
    with mlflow.start_run():
        serving = ServingConfig(weights="model", sampling=run.job.sampling)
        version = registration.register("tiny", run.registered, serving=serving, tags={})
    registered = load_model(f"models:/fractal-tiny/{version}", tmp_path).state_dict()
    assert_equal(registered, best.weights)


@pytest.mark.faults
def test_two_ranks_stop_early_and_at_the_same_step_each_time(few_digits, cluster, tmp_path):
    ends = []
    for name in ("first", "second"):
        run = make_overfitted(tmp_path / name, few_digits, stop_after_epochs_without_gain=8)
        run.train()
        bits = [metrics[NLL] for _, metrics in measured(run)]
        assert "no gain on held-out images for 8 epochs" in (run.reports[-1].note or "")
        assert run.reports[-1].workers == 2
        assert run.position < 48 * IMAGES
        assert bits.index(min(bits)) < len(bits) - 1
        ends.append((run.position, bits))
    assert ends[0] == ends[1]


@pytest.fixture
def by_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the workers measure, as on a cluster without a GPU to spare."""
    monkeypatch.setattr("fractal_model.training.ray_train.run.measured_by_workers", lambda _: True)


def enough_time(turn: ValidationTurn) -> float:
    return 100.0  # A share of the time that these short runs take would be too short.


def measuring_worker(config: dict[str, str]) -> None:
    ValidationTurn._share_of_interval = enough_time
    train_worker(config)


@pytest.mark.faults
def test_workers_that_measure_get_the_same_points_and_weights(new_run, undisturbed, by_workers):
    run = make_validated(new_run)
    assert_equal(run.train(worker=measuring_worker), undisturbed.weights())
    assert [position for position, _ in measured(run)] == POSITIONS
    for (_, ours), (_, theirs) in zip(measured(run), measured(undisturbed), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    assert all(point.grids == ("samples.png",) for point in run.points)
    record = json.loads((run.folder / "best.json").read_text())
    assert record[NLL] == min(metrics[NLL] for _, metrics in measured(run))
    verify_checkpoint(run.folder / "best" / record["checkpoint"])


@pytest.mark.faults
def test_a_worker_that_is_killed_while_it_measures_measures_again(
    new_run, undisturbed, by_workers, tmp_path
):
    killed = tmp_path / "killed"

    def worker(config):
        original = RankParts._compute

        def compute(parts, *arguments):
            if parts._rank == 1 and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return original(parts, *arguments)

        ValidationTurn._share_of_interval = enough_time
        RankParts._compute = compute
        train_worker(config)

    run = make_validated(new_run)
    assert_equal(run.train(worker=worker), undisturbed.weights())
    assert killed.exists()
    assert [position for position, _ in measured(run)] == POSITIONS


@pytest.mark.faults
def test_workers_that_hang_in_each_validation_train_on_without(
    new_run, undisturbed, by_workers, tmp_path
):
    """All ranks hang twice; then the run is not validated any more and says so once."""

    def worker(config):
        def hang(*_):
            (tmp_path / f"hung-{time.time_ns()}").touch()
            time.sleep(600)

        ValidationTurn._share_of_interval = enough_time
        RankParts._compute = hang
        train_worker(config)

    run = make_validated(new_run)
    assert_equal(run.train(worker=worker), undisturbed.weights())
    assert 2 <= len(list(tmp_path.glob("hung-*"))) <= 4  # Both ranks call it in each attempt.
    (point,) = run.points
    assert (point.position, point.metrics) == (IMAGES, {})
    assert "there are no more in this run" in point.failure


@pytest.mark.faults
def test_a_killed_worker_repeats_no_point(new_run, undisturbed):
    run = make_validated(new_run)
    killer = run.when(3 * IMAGES, lambda: training_workers()[0].send_signal(signal.SIGKILL))
    assert_equal(run.train(), undisturbed.weights())
    killer.join()
    assert measured(run) == measured(undisturbed)


@pytest.mark.faults
def test_a_run_that_is_started_again_has_the_same_points(new_run, undisturbed):
    def stop_once(config):
        original = Trainer.start_step

        def start_step(trainer, batch):
            if trainer.position == 3 * IMAGES + IMAGES // 2:
                ray.train.report(Stopped(stopped="for the test").model_dump())
                raise SystemExit
            return original(trainer, batch)

        Trainer.start_step = start_step
        with suppress(SystemExit):
            train_worker(config)

    run = make_validated(new_run)
    with pytest.raises(FractalError, match="for the test"):
        run.train(worker=stop_once)
    assert len(run.points) < len(POSITIONS)
    run.points.clear()
    assert_equal(run.train(), undisturbed.weights())
    assert measured(run) == measured(undisturbed)


@pytest.mark.faults
@pytest.mark.parametrize("is_worker_killed", [False, True])
def test_a_stuck_validation_ends_after_its_timeout_and_its_point_is_absent(
    new_run, undisturbed, is_worker_killed
):
    """A worker that is replaced meanwhile does not wait for the validation, which is stuck for
    longer than `stall_seconds`."""
    seconds = 60.0 if is_worker_killed else 15.0
    run = make_validated(
        new_run, validation=VALIDATION.model_copy(update={"timeout_seconds": seconds})
    )
    wait = signal_validation(signal.SIGSTOP)
    if is_worker_killed:
        run.when(3 * IMAGES, lambda: training_workers()[0].send_signal(signal.SIGKILL))
    assert_equal(run.train(), undisturbed.weights())
    wait()
    absent = set(POSITIONS) - {position for position, _ in measured(run)}
    assert absent  # With the stuck one, those for which training could not wait.
    assert any("points are left out" in (report.note or "") for report in run.reports) is (
        len(absent) > 1
    )
    assert POSITIONS[-1] not in absent
    assert measured(run) == [each for each in measured(undisturbed) if each[0] not in absent]


@pytest.mark.faults
def test_a_killed_validation_is_measured_again(new_run, undisturbed):
    run = make_validated(new_run)
    wait = signal_validation(signal.SIGKILL)
    assert_equal(run.train(), undisturbed.weights())
    wait()
    assert measured(run) == measured(undisturbed)
