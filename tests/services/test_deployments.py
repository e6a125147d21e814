"""prefect.yaml agrees with params.yaml."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from prefect.utilities.callables import parameter_schema

from flows.train import train_fractal
from fractal_model.params import load_params

REPOSITORY = Path(__file__).parents[2]


def test_a_deployment_for_every_size():
    content = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())
    params = load_params(REPOSITORY / "params.yaml")
    deployments = {each["name"]: each for each in content["deployments"]}
    assert set(deployments) == set(params.models)
    for name, deployment in deployments.items():
        recipe = params.size(name).training
        assert deployment["entrypoint"] == "flows/train.py:train_fractal"
        assert deployment["parameters"] == {"size": name}
        assert deployment["work_pool"] == {"name": "fractal"}
        assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
        # What the description promises is what the recipe asks for.
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
        assert {"fractal", recipe.dataset} <= set(deployment["tags"])


def test_code_comes_from_the_folder_that_was_deployed():
    """Without a `pull` section Prefect sets the working directory to it."""
    assert "pull" not in yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())


def test_what_a_person_may_override_is_described():
    schema = parameter_schema(train_fractal)
    assert set(schema.properties) >= {"epochs", "workers", "batch_size", "precision", "resume"}
    assert all(each.get("description") for each in schema.properties.values())
