"""A machine has too little memory for its workers: Ray ends some, also while they start."""

from __future__ import annotations

import logging

import pytest
import ray.train

from fractal_model.common.errors import FractalError
from fractal_model.parallel.ray_cluster import ray_cluster
from fractal_model.training.ray_train import run as ray_run
from tests.support.disturbed_runs import IMAGES
from tests.support.recipes import RECIPE

pytestmark = pytest.mark.faults
RAYS_WORDS = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node "
    "(IP: 10.0.0.7, ID: 55a7) was 22.40GB used / 23.54GB limit (0.951)\nOOM kill reason: …"
)


@pytest.fixture
def machine_for(monkeypatch):
    """Makes the workers of more than so many end for want of memory, `times` times."""

    def make(most: int, error: BaseException, times: int = 9) -> list[int]:
        tried: list[int] = []
        fit = ray_run.TorchTrainer.fit

        def full(trainer):
            wanted = trainer.scaling_config.num_workers
            tried.append(wanted[1] if isinstance(wanted, tuple) else wanted)
            if tried[-1] > most and len(tried) <= times:
                raise error
            return fit(trainer)

        monkeypatch.setattr(ray_run.TorchTrainer, "fit", full)
        return tried

    return make


@pytest.mark.parametrize(
    "error",
    [
        ray.exceptions.OutOfMemoryError(RAYS_WORDS),
        ray.train.ControllerError(ray.exceptions.OutOfMemoryError(RAYS_WORDS)),
        ray.train.WorkerGroupError("1 failed", {3: ray.exceptions.OutOfMemoryError(RAYS_WORDS)}),
    ],
    ids=["controller", "start", "training"],
)
def test_training_goes_on_with_fewer_workers(new_run, machine_for, caplog, error):
    run = new_run(epochs=2, workers=4, min_workers=1, max_failures=2)
    tried = machine_for(2, error)
    with ray_cluster(cpus=4), caplog.at_level(logging.WARNING, "fractal.training"):
        run.train()
    assert tried == [4, 3, 2]
    assert {report.workers for report in run.reports} == {2}
    assert run.position == 2 * IMAGES
    assert [r.getMessage() for r in caplog.records] == [
        f"the machine 10.0.0.7 has too little memory for its share of the workers ({workers}): "
        f"22.40 of 23.54 GB were in use, and Ray ended processes there; training goes on "
        f"with at most {workers - 1}"
        for workers in (4, 3)
    ]


def test_the_same_number_is_tried_again_where_fewer_are_not_allowed(new_run, machine_for):
    run = new_run(epochs=2, workers=2, min_workers=2, max_failures=1)
    tried = machine_for(1, ray.exceptions.OutOfMemoryError(RAYS_WORDS), times=1)
    with ray_cluster(cpus=2):
        run.train()
    assert tried == [2, 2]


def test_without_an_end_of_failures_there_is_no_end_of_tries():
    """`max_failures` -1 is always, as where a worker dies."""
    recipe = RECIPE.model_copy(update={"workers": 4, "min_workers": 2, "max_failures": -1})
    tried: list[int] = []

    def train(workers: int) -> str:
        tried.append(workers)
        if len(tried) < 5:
            raise ray.exceptions.OutOfMemoryError(RAYS_WORDS)
        return "trained"

    assert ray_run._train_within_memory(train, recipe) == "trained"
    assert tried == [4, 3, 2, 2, 2]


def test_ray_ends_every_process_and_the_error_names_the_machine(new_run, monkeypatch):
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.01")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "200")
    run = new_run(workers=2, min_workers=1, max_failures=1)
    with ray_cluster(cpus=2), pytest.raises(FractalError) as error:
        run.train()
    assert "\n" not in str(error.value)
    assert "the machine 127.0.0.1 has too little memory for its share of the workers (1)" in str(
        error.value
    )
