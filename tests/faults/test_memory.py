"""A machine has too little memory for its workers: Ray ends some, even during their start."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest
import ray.train
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from fractal_model.common.errors import FractalError
from fractal_model.parallel.ray_cluster import ray_cluster
from fractal_model.training.ray_train import run as ray_run
from fractal_model.training.ray_train.failures import train_through_failures
from fractal_model.training.ray_train.worker import train_worker
from tests.support.disturbed_runs import IMAGES
from tests.support.recipes import RECIPE

pytestmark = pytest.mark.faults
RAY_MESSAGE = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node "
    "(IP: 10.0.0.7, ID: 55a7) was 22.40GB used / 23.54GB limit (0.951)\nOOM kill reason: …"
)


@dataclass
class FailsWhenReceived:
    """The function of a training, which the first worker that receives it cannot read."""

    flag: Path

    def __call__(self, config: dict[str, str]) -> None:
        train_worker(config)

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        is_worker = "RayTrainWorker" in " ".join(psutil.Process().cmdline())
        if is_worker and not self.flag.exists():
            self.flag.touch()
            raise ray.exceptions.OutOfMemoryError(RAY_MESSAGE)


class DiesWhenReceived(FailsWhenReceived):
    """The function of a training; the process of the first worker that receives it dies."""

    def __setstate__(self, state: dict[str, object]) -> None:
        try:
            super().__setstate__(state)
        except ray.exceptions.OutOfMemoryError:
            psutil.Process().kill()


class DiesInSetUp(_TorchBackend):
    """Torch's backend, whose worker 1 dies while the processes connect, as often as the file
    `flag` says."""

    def on_start(self, worker_group, backend_config) -> None:
        flag = Path(backend_config.flag)
        deaths = int(flag.read_text())
        if deaths:
            flag.write_text(str(deaths - 1))
            worker_group.execute_single(1, kill_this_process)
        super().on_start(worker_group, backend_config)


def kill_this_process() -> None:
    psutil.Process().kill()


@dataclass
class DyingConfig(TorchConfig):
    """The settings of `DiesInSetUp`. `flag`: the file with the number of deaths to come."""

    flag: str = ""

    @property
    def backend_cls(self) -> type[DiesInSetUp]:
        return DiesInSetUp


@pytest.fixture
def limit_workers(monkeypatch):
    """Function that makes up to `times` starts of more than `most` workers fail for lack of memory.

    It returns the list of the numbers of workers that are tried.
    """

    def make(most: int, error: BaseException, times: int = 9) -> list[int]:
        tried: list[int] = []
        fit = ray_run.TorchTrainer.fit

        def fit_or_fail(trainer):
            workers = trainer.scaling_config.num_workers
            tried.append(workers[1] if isinstance(workers, tuple) else workers)
            if tried[-1] > most and len(tried) <= times:
                raise error
            return fit(trainer)

        monkeypatch.setattr(ray_run.TorchTrainer, "fit", fit_or_fail)
        return tried

    return make


@pytest.mark.parametrize(
    "error",
    [
        ray.exceptions.OutOfMemoryError(RAY_MESSAGE),
        ray.train.ControllerError(ray.exceptions.OutOfMemoryError(RAY_MESSAGE)),
        ray.train.WorkerGroupError("1 failed", {3: ray.exceptions.OutOfMemoryError(RAY_MESSAGE)}),
    ],
    ids=["controller", "start", "training"],
)
def test_training_continues_with_fewer_workers(new_run, limit_workers, caplog, error):
    run = new_run(epochs=2, workers=4, min_workers=1, max_failures=2)
    tried = limit_workers(2, error)
    with ray_cluster(cpus=4), caplog.at_level(logging.WARNING, "fractal.training"):
        run.train()
    assert tried == [4, 3, 2]
    assert {report.workers for report in run.reports} == {2}
    assert run.position == 2 * IMAGES
    assert [r.getMessage() for r in caplog.records] == [
        f"the machine 10.0.0.7 has too little memory for its share of the workers ({workers}): "
        f"22.40 of 23.54 GB were in use, and Ray ended processes there; training continues with at "
        f"most {workers - 1}"
        for workers in (4, 3)
    ]


def test_the_same_number_is_tried_again_if_fewer_are_not_allowed(new_run, limit_workers):
    run = new_run(epochs=2, workers=2, min_workers=2, max_failures=1)
    tried = limit_workers(1, ray.exceptions.OutOfMemoryError(RAY_MESSAGE), times=1)
    with ray_cluster(cpus=2):
        run.train()
    assert tried == [2, 2]


def test_unlimited_failures_allow_unlimited_tries():
    """`max_failures` -1 means no limit, as for workers that die."""
    recipe = RECIPE.model_copy(update={"workers": 4, "min_workers": 2, "max_failures": -1})
    tried: list[int] = []

    def train(workers: int) -> str:
        tried.append(workers)
        if len(tried) < 5:
            raise ray.exceptions.OutOfMemoryError(RAY_MESSAGE)
        return "trained"

    assert train_through_failures(train, recipe) == "trained"
    assert tried == [4, 3, 2, 2, 2]


def test_the_error_names_the_machine_on_which_ray_ends_every_process(new_run, monkeypatch):
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.01")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "200")
    run = new_run(workers=2, min_workers=1, max_failures=1)
    with ray_cluster(cpus=2), pytest.raises(FractalError) as raised:
        run.train()
    assert "\n" not in str(raised.value)
    assert "the machine 127.0.0.1 has too little memory for its share of the workers (1)" in str(
        raised.value
    )


@pytest.mark.parametrize("function", [FailsWhenReceived, DiesWhenReceived])
def test_a_group_whose_start_failed_leaves_its_places_to_the_next(new_run, tmp_path, function):
    """The cluster has no place for a second group beside the first."""
    run = new_run(epochs=2, workers=2, min_workers=1, max_failures=3)
    with ray_cluster(cpus=2):
        run.train(worker=function(tmp_path / "flag"))
    assert (tmp_path / "flag").exists()
    assert run.position == 2 * IMAGES


@pytest.mark.parametrize(("deaths", "error"), [(2, None), (9, "a worker died while the workers")])
def test_a_worker_may_die_while_the_processes_connect(
    new_run, tmp_path, monkeypatch, deaths, error
):
    """The cluster has no place for a second group beside one that Ray forgets."""
    flag = tmp_path / "deaths"
    flag.write_text(str(deaths))
    monkeypatch.setattr(ray_run, "TorchConfig", partial(DyingConfig, flag=str(flag)))
    run = new_run(epochs=2, workers=2, min_workers=2, max_failures=3)
    outcome = nullcontext() if error is None else pytest.raises(FractalError, match=error)
    with ray_cluster(cpus=2), outcome:
        run.train()
    assert int(flag.read_text()) == max(0, deaths - 4)
    assert run.position == (0 if error else 2 * IMAGES)


def test_the_error_says_that_workers_die_while_they_start(new_run, tmp_path):
    run = new_run(epochs=2, workers=2, min_workers=1, max_failures=0)
    with ray_cluster(cpus=2), pytest.raises(FractalError) as raised:
        run.train(worker=DiesWhenReceived(tmp_path / "flag"))
    assert "a worker died while the workers started, and max_failures (0) is" in str(raised.value)
