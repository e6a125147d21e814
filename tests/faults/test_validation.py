"""Validation beside a training: whatever happens to it, the weights stay the same."""

import json
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ray.train

from fractal_model.checkpoints.checkpoint import verify_checkpoint
from fractal_model.common.errors import FractalError
from fractal_model.training.job import Stopped
from fractal_model.training.ray_train.worker import train_worker
from fractal_model.training.trainer import Trainer
from tests.faults.conftest import run_maker
from tests.support import tiny_config
from tests.support.disturbed_runs import (
    IMAGES,
    VALIDATION,
    Run,
    assert_equal,
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
    run = make_validated(run_maker(tmp_path_factory.mktemp("undisturbed"), data))
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


def test_each_epoch_is_measured_and_the_weights_are_those_of_a_run_without(undisturbed, straight):
    assert_equal(undisturbed.weights(), straight)
    assert [position for position, _ in measured(undisturbed)] == POSITIONS
    assert all(set(metrics) == {NLL, f"{NLL}_stderr"} for _, metrics in measured(undisturbed))
    best = min(metrics[NLL] for _, metrics in measured(undisturbed))
    record = json.loads((undisturbed.folder / "best.json").read_text())
    assert record[NLL] == best
    verify_checkpoint(undisturbed.folder / "best" / record["checkpoint"])
    assert undisturbed.registered == undisturbed.newest


def test_the_best_checkpoint_of_an_overfitted_run_is_kept_and_registered(new_run, cluster):
    run = make_validated(
        new_run,
        model=tiny_config("ar"),
        epochs=40,
        validate_every_epochs=5,
        checkpoint_every_epochs=40,
        register_checkpoint="best",
    )
    run.train()
    bits = [metrics[NLL] for _, metrics in measured(run)]
    assert run.reports[-1].loss < run.reports[len(run.reports) // 4].loss
    assert bits[-1] > min(bits) + 0.1
    assert run.registered is not None and run.registered.parent == run.folder / "best"
    progress = json.loads((run.registered / "progress.json").read_text())
    assert progress["position"] == run.points[bits.index(min(bits))].position


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
        original = Trainer.step

        def step(trainer, batch):
            if trainer.position == 3 * IMAGES + IMAGES // 2:
                ray.train.report(Stopped(stopped="for the test").model_dump())
                raise SystemExit
            return original(trainer, batch)

        Trainer.step = step
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
    assert len(absent) == 1
    assert measured(run) == [each for each in measured(undisturbed) if each[0] not in absent]


@pytest.mark.faults
def test_a_killed_validation_is_measured_again(new_run, undisturbed):
    run = make_validated(new_run)
    wait = signal_validation(signal.SIGKILL)
    assert_equal(run.train(), undisturbed.weights())
    wait()
    assert measured(run) == measured(undisturbed)
