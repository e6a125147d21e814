"""The plan and the command that prints it."""

from __future__ import annotations

import json
import math

import pytest
from typer.testing import CliRunner

from fractal_model.cli.app import app
from fractal_model.common.errors import FractalError
from fractal_model.config.params import load_params
from fractal_model.costs.flops import published_sampling_flops, sampling_flops
from fractal_model.costs.gpus import GPUS, gpu_named
from fractal_model.costs.plan import Plan, dataset_splits, plan
from tests.support.params import SHIPPED
from tests.support.tiny_files import save_images

PARAMS = load_params(SHIPPED)
PARAMETERS = {  # published
    "ar-64": 442_068_224,
    "mar-64": 431_995_648,
    "mar-b": 186_300_224,
    "mar-l": 437_000_064,
    "mar-h": 849_586_240,
}


def plan_for(size: str = "mar-l", *, gpu: str = "h100", gpus: int = 32, **options) -> Plan:
    chosen = PARAMS.size(size)
    splits = dataset_splits(PARAMS, chosen.training.dataset)
    return plan(chosen, gpu=gpu_named(gpu), gpus=gpus, splits=splits, **options)


@pytest.mark.parametrize("size", PARAMETERS)
def test_parameters_are_the_published_numbers(size):
    found = plan_for(size)
    assert found.parameters == PARAMETERS[size]
    levels = sum(part.parameters for part in found.parts)
    assert levels + found.embedding_parameters == found.parameters


def test_other_levels_under_a_published_name_have_no_published_figures():
    other = PARAMS.size("mar-64-two-level").model_copy(update={"name": "mar-l"})
    splits = dataset_splits(PARAMS, other.training.dataset)
    found = plan(other, gpu=gpu_named("h100"), gpus=32, splits=splits)
    assert [part.published_gflops for part in found.parts] == [None] * 2


def test_the_published_run_takes_its_published_time():
    found = plan_for("mar-l")
    assert found.training_days == pytest.approx(7.6, rel=0.005)
    assert found.gpu_hours == pytest.approx(7.6 * 24 * 32, rel=0.005)
    assert found.steps == 800 * 1_281_167 // 1024 + 1


def test_sampling_takes_less_than_published_by_what_is_left_out():
    size = PARAMS.size("mar-h")
    ours = sum(sampling_flops(size.model, size.sampling))
    published = sum(published_sampling_flops(size.model, size.sampling))
    found = plan_for("mar-h", gpu="h100-pcie").seconds_per_sample
    assert found == pytest.approx(1.29 * ours / published, rel=0.005)
    assert ours < 0.95 * published


def test_time_falls_with_gpus_and_utilisation():
    days = plan_for().training_days
    assert plan_for(gpus=64).training_days == pytest.approx(days / 2)
    assert plan_for(utilisation=0.169 * 2).training_days == pytest.approx(days / 2)


def test_the_recipe_fits_with_activation_checkpointing_alone():
    found = plan_for("mar-l")
    available = found.gpu.memory_gb * 1e9
    assert found.memory_checkpointed.total < available < found.memory.total


def test_digits_has_its_own_number_of_images_and_float32_peak():
    found = plan_for("digits", gpus=2)
    recipe = PARAMS.training["digits"]
    assert (found.images, found.images_per_gpu) == (1500, recipe.batch_size // 2)
    assert found.steps == math.ceil(recipe.epochs * 1500 / recipe.batch_size)
    executed = recipe.epochs * 1500 * sum(part.training_flops for part in found.parts)
    reached = 2 * GPUS["h100"].float32_tflops * 1e12 * found.utilisation
    assert found.training_days * 86_400 == pytest.approx(executed / reached)


def test_a_moving_average_takes_memory_and_disk():
    size = PARAMS.size("mar-b")
    training = size.training.model_copy(update={"ema_decay": 0.999})
    averaged = size.model_copy(update={"training": training})
    without, with_average = (
        plan(s, gpu=gpu_named("h100"), gpus=32, splits={"train": 1000}) for s in (size, averaged)
    )
    weights = 4 * PARAMETERS["mar-b"]
    assert with_average.memory.total - without.memory.total == pytest.approx(weights)
    assert with_average.disk.checkpoint - without.disk.checkpoint == pytest.approx(weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus": 0}, "0 GPUs asked for: give 1 … 10,000"),
        ({"gpus": 2**31}, "2147483648 GPUs asked for: give 1 … 10,000"),
        ({"gpus": -3}, "-3 GPUs asked for: give 1 … 10,000"),
        ({"gpus": 24}, "batch of 1024 images does not divide by 24 GPUs.*8, 16, 32"),
        ({"batch_size": 100}, "batch of 100 images does not divide by 32 GPUs"),
        ({"batch_size": 0}, "0 images .*give 1 … 1,000,000"),
        ({"batch_size": 10**400}, "images asked for: give 1 … 1,000,000"),
        ({"utilisation": 0.0}, "utilisation 0.0 is out of range: above 0, at most 1"),
        ({"utilisation": 1.5}, "utilisation 1.5 is out of range"),
        ({"utilisation": float("nan")}, "utilisation nan is out of range"),
        ({"sampling_utilisation": -1.0}, "utilisation -1.0 is out of range"),
    ],
)
def test_bad_numbers_are_refused(options, message):
    with pytest.raises(FractalError, match=message):
        plan_for(**options)


def test_an_unknown_data_set_is_refused():
    with pytest.raises(FractalError, match="'faces' is unknown: .* say how many there are"):
        dataset_splits(PARAMS, "faces")
    with pytest.raises(FractalError, match="0 training images asked for"):
        dataset_splits(PARAMS, "faces", 0)


def test_a_data_set_of_ones_own(tmp_path):
    """Its images are counted once it is prepared, and ImageNet's archives are not for it."""
    paths = PARAMS.paths.model_copy(update={"data": tmp_path})
    params = PARAMS.model_copy(update={"paths": paths})
    save_images(tmp_path / "faces", count=11)
    assert dataset_splits(params, "faces") == {"validation": 11}
    assert dataset_splits(params, "faces", 500) == {"train": 500}
    size = PARAMS.size("mar-b")
    own = size.model_copy(
        update={"training": size.training.model_copy(update={"dataset": "faces"})}
    )
    found = plan(own, gpu=gpu_named("h100"), gpus=32, splits={"train": 500})
    assert found.images == 500
    assert found.disk.raw_archives == 0
    assert plan_for("mar-b").disk.raw_archives > 0


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["plan", *arguments, "--params", str(SHIPPED)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mar-x",), "size 'mar-x' is unknown: choose "),
        (("mar-l", "--gpu", "tpu"), "GPU 'tpu' is unknown: choose h100, h100-pcie"),
    ],
)
def test_unknown_names_are_refused_with_those_there_are(arguments, message):
    done = invoke(*arguments)
    assert isinstance(done.exception, FractalError)
    assert message in str(done.exception)


def test_json_is_the_plan():
    done = invoke("mar-l", "--gpus", "32", "--gpu", "h200", "--json")
    assert done.exit_code == 0, done.output
    assert Plan.model_validate_json(done.output) == plan_for("mar-l", gpu="h200")
    assert json.loads(done.output)["parameters"] == PARAMETERS["mar-l"]


@pytest.mark.parametrize("size", ["digits", "mar-l", "ar-64"])
def test_tables_state_numbers_and_assumptions(size):
    done = invoke(size, "--gpus", "2")
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert f"{plan_for(size, gpus=2).parameters:,}" in text
    assert "Training at 0.169 of h100's dense" in text
