"""Failures of a training that Ray does not repeat."""

from __future__ import annotations

import pytest
import ray
import ray.train

from fractal_model.common.errors import FractalError
from fractal_model.training.ray_train.failed_start import StartFailedError
from fractal_model.training.ray_train.failures import train_through_failures
from tests.support.recipes import RECIPE


def task_error(text: str) -> ray.exceptions.RayTaskError:
    return ray.exceptions.RayTaskError("execute", text, RuntimeError(text))


def fail(times: int, failure: Exception) -> tuple[list[int], str]:
    """Train with at most 2 failures, of which the first `times` starts have one; return the numbers
    of workers that were tried, and the outcome."""
    tried: list[int] = []

    def train(workers: int) -> str:
        tried.append(workers)
        if len(tried) <= times:
            raise ray.train.ControllerError(failure)
        return "trained"

    recipe = RECIPE.model_copy(update={"workers": 4, "min_workers": 2, "max_failures": 2})
    try:
        return tried, train_through_failures(train, recipe)
    except FractalError as error:
        return tried, str(error)


@pytest.mark.parametrize(
    "failure",
    [
        ray.exceptions.ActorDiedError(),
        task_error("RuntimeError: [gloo] Connection closed by peer [127.0.0.1]:4321"),
    ],
    ids=["death", "lost connection"],
)
def test_a_death_at_the_start_is_repeated_with_as_many_workers(failure):
    assert fail(2, failure) == ([4, 4, 4], "trained")
    tried, error = fail(3, failure)
    assert tried == [4, 4, 4]
    assert "a worker died while the workers started, and max_failures (2) is reached" in error


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (StartFailedError(), "a worker died while the workers started, and max_failures (2) is"),
        (task_error("ValueError: no such thing"), "no such thing"),
    ],
)
def test_other_failures_of_the_controller_end_the_training(failure, message):
    tried, error = fail(1, failure)
    assert tried == [4]
    assert message in error and "training continues from the last checkpoint" in error
