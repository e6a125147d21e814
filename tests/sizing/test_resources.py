"""A recipe uses the machine that is there, and no more memory than it has."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fractal_model.common.errors import FractalError
from fractal_model.config.params import load_params
from fractal_model.sizing.choices import values
from fractal_model.sizing.machine import Machine
from fractal_model.sizing.recipe import Plan
from fractal_model.sizing.resources import propose_resources, propose_upkeep
from tests.support.params import SHIPPED
from tests.support.sizing import DIGITS, FLOWERS, IMAGENET, LAPTOP, NODE

MAR_64 = load_params(SHIPPED).size("mar-64").model


def resources(machine: Machine, batch: int = 256, most: int = 64) -> dict:
    plan = Plan(IMAGENET, machine, MAR_64, 800, 1e6, most)
    return values(propose_resources(plan, batch, averages=0))


def test_gpus_have_a_worker_each():
    entry = resources(NODE)
    assert (entry["workers"], entry["resources_per_worker"]) == (8, {"CPU": 8, "GPU": 1})
    assert (entry["precision"], entry["loader_processes"]) == ("bfloat16", 6)
    assert entry["images_per_worker"] == 32


def test_little_memory_takes_fewer_images_then_checkpointing_then_an_error():
    plain, selective, small = (
        resources(replace(NODE, memory_bytes=gigabytes * 1e9)) for gigabytes in (60, 24, 15)
    )
    assert 8 <= plain["images_per_worker"] < 32
    choices = [entry["activation_checkpointing"] for entry in (plain, selective, small)]
    assert choices == [False, "selective", True]
    assert selective["images_per_worker"] >= 8
    with pytest.raises(
        FractalError, match="one image does not fit the memory, .* lower resolution"
    ):
        resources(replace(NODE, memory_bytes=4e9))


def test_the_number_of_images_at_a_time_can_be_limited():
    assert resources(NODE, most=4)["images_per_worker"] == 4


@pytest.mark.parametrize(
    ("cores", "gigabytes", "batch", "workers", "cpus"),
    [(2, 64, 32, 2, 1), (6, 200, 32, 4, 1), (3, 64, 3, 3, 1), (2, 16, 32, 1, 2), (5, 30, 4, 2, 2)],
)
def test_workers_divide_the_batch_and_fit_the_memory(cores, gigabytes, batch, workers, cpus):
    entry = resources(replace(LAPTOP, cores=cores, memory_bytes=gigabytes * 1e9), batch)
    assert (entry["workers"], entry["resources_per_worker"]) == (workers, {"CPU": cpus})


@pytest.mark.parametrize("epochs", [1, 5, 22, 97, 800])
def test_a_training_has_six_validations_or_more(epochs):
    plan = Plan(FLOWERS, LAPTOP, MAR_64, epochs, 3600.0, 64)
    entry = values(propose_upkeep(plan, steps=1000, averages=0, sample_seconds=2.0))
    assert math.ceil(epochs / entry["validate_every_epochs"]) >= min(6, epochs)
    assert entry["stop_after_epochs_without_gain"] == 3 * entry["validate_every_epochs"]
    assert entry["register"] == "best"


def test_many_images_register_the_last_checkpoint():
    entry = values(propose_upkeep(Plan(IMAGENET, NODE, MAR_64, 800, 1e6, 64), 1000, 0, 0.01))
    assert (entry["register"], entry["stop_after_epochs_without_gain"]) == ("last", 0)


def test_without_held_out_images_nothing_is_validated():
    plan = Plan(replace(DIGITS, held_out=0), LAPTOP, MAR_64, 22, 100.0, 64)
    entry = propose_upkeep(plan, steps=1000, averages=0, sample_seconds=1.0)
    assert entry["validate_every_epochs"].value == 0
    assert "register" not in entry and "validation" not in entry
