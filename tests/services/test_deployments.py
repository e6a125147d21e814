"""prefect.yaml agrees with params.yaml."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import yaml
from prefect.client.schemas.schedules import CronSchedule
from prefect.utilities.callables import parameter_schema

from flows.evaluate import evaluate_fractal
from flows.nightly import nightly_evaluation
from flows.sweep import sweep_guidance
from flows.train import train_fractal
from fractal_model.config.params import load_params
from tests.support import REPOSITORY

TRAIN, EVALUATE, SWEEP, NIGHTLY = (
    "flows/train.py:train_fractal",
    "flows/evaluate.py:evaluate_fractal",
    "flows/sweep.py:sweep_guidance",
    "flows/nightly.py:nightly_evaluation",
)


def _deployments(entrypoint: str) -> dict[str, dict]:
    content = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())
    found = [each for each in content["deployments"] if each["entrypoint"] == entrypoint]
    named = {each["name"]: each for each in found}
    assert len(named) == len(found)
    return named


@pytest.fixture
def params():
    return load_params(REPOSITORY / "params.yaml")


@pytest.mark.parametrize("entrypoint", [TRAIN, EVALUATE, SWEEP])
def test_a_deployment_for_every_size(params, entrypoint):
    deployments = _deployments(entrypoint)
    assert set(deployments) == set(params.models)
    for name, deployment in deployments.items():
        assert deployment["parameters"] == {"size": name}
        assert deployment["work_pool"] == {"name": "fractal"}
        assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
        assert deployment["description"]
        assert {"fractal", params.size(name).training.dataset} <= set(deployment["tags"])


def test_what_the_description_of_a_training_promises_is_what_the_recipe_asks_for(params):
    for name, deployment in _deployments(TRAIN).items():
        recipe = params.size(name).training
        workers, cpus = re.search(
            r"(\d+) workers, .*?(\d+) CPU", deployment["description"]
        ).groups()
        assert (int(workers), int(cpus)) == (
            recipe.workers,
            recipe.resources_per_worker["CPU"],
        )
        memory = re.search(r"(\d+) GiB of memory", deployment["description"])
        asked = recipe.resources_per_worker.get("memory")
        assert (memory and int(memory[1]) * 2**30) == asked
        assert ("H100" in deployment["description"]) is (recipe.accelerator_type == "H100")


def test_the_night_begins_when_the_settings_say(params):
    (deployment,) = _deployments(NIGHTLY).values()
    assert deployment["name"] == "all"
    assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    (schedule,) = deployment["schedules"]
    night = params.nightly
    assert schedule == {"cron": night.cron, "timezone": night.timezone, "active": True}
    CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])  # Prefect takes it


def _parameters() -> Iterator[tuple[str, str, dict]]:
    for flow in (train_fractal, evaluate_fractal, nightly_evaluation, sweep_guidance):
        for name, schema in parameter_schema(flow.fn).model_dump()["properties"].items():
            yield flow.name, name, schema


@pytest.mark.parametrize(("flow", "parameter", "schema"), list(_parameters()))
def test_the_form_in_the_browser_says_what_a_parameter_is(flow, parameter, schema):
    assert len(schema["description"]) > 10


def test_code_comes_from_the_folder_that_was_deployed():
    """Without a `pull` section Prefect sets the working directory to it."""
    assert "pull" not in yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())
