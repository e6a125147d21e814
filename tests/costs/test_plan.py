"""The plan and the command that prints it."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from fractal_model.cli.app import app
from fractal_model.common.errors import FractalError
from fractal_model.common.gpus import GPUS, find_gpu
from fractal_model.config.params import load_params
from fractal_model.costs.flops import published_sampling_flops, sampling_flops
from fractal_model.costs.plan import Plan, dataset_splits, plan
from fractal_model.model.blocks import Block
from fractal_model.model.fractal import FractalModel
from tests.support.params import IMAGENET_SIZES, SHIPPED
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
    named_size = PARAMS.size(size)
    splits = dataset_splits(PARAMS, named_size.training.dataset)
    return plan(named_size, gpu=find_gpu(gpu), gpus=gpus, splits=splits, **options)


@pytest.mark.parametrize("size", PARAMETERS)
def test_parameters_are_the_published_numbers(size):
    costs = plan_for(size)
    assert costs.parameters == PARAMETERS[size]
    levels = sum(part.parameters for part in costs.parts)
    assert levels + costs.embedding_parameters == costs.parameters


def test_the_scales_of_normalised_queries_and_keys_are_counted():
    row = PARAMS.models["mar-b"].model_copy(update={"qk_norm": True})
    normed = PARAMS.size("mar-b").model_copy(update={"model": row.to_model()})
    splits = dataset_splits(PARAMS, normed.training.dataset)
    costs = plan(normed, gpu=find_gpu("h100"), gpus=32, splits=splits)
    blocks = (24 + 6 + 3) * 64 + 1 * 16  # of 64 and of 16 elements a head
    guides = 2 * 3 * 32  # two levels with guiding pixels
    assert costs.parameters == PARAMETERS["mar-b"] + 2 * (blocks + guides)
    plain = plan_for("mar-b").memory
    assert costs.memory.activations.kept > 1.2 * plain.activations.kept


@pytest.mark.parametrize("size", IMAGENET_SIZES)
def test_the_held_out_likelihood_is_a_small_share_of_a_published_training(size):
    """On the workers' GPUs, in float32 at a third of the speed of training: a hundredth of the time
    between two validations, which leaves the rest of `max_share` to the sample grid."""
    recipe, costs = PARAMS.size(size).training, plan_for(size)
    settings = recipe.validation
    flops = settings.images * settings.passes * sum(part.forward_flops for part in costs.parts)
    speed = costs.gpus * costs.gpu.peak("bfloat16") * costs.utilisation / 3
    between = costs.training_days * 86_400 / recipe.epochs * recipe.validate_every_epochs
    assert 0 < flops / speed < 0.01 * between
    assert settings.max_share == 0.05


def test_other_levels_with_a_published_name_have_no_published_figures():
    other = PARAMS.size("mar-64-two-level").model_copy(update={"name": "mar-l"})
    splits = dataset_splits(PARAMS, other.training.dataset)
    costs = plan(other, gpu=find_gpu("h100"), gpus=32, splits=splits)
    assert [part.published_gflops for part in costs.parts] == [None] * 2


def test_the_published_run_takes_its_published_time():
    costs = plan_for("mar-l")
    assert costs.training_days == pytest.approx(7.6, rel=0.005)
    assert costs.gpu_hours == pytest.approx(7.6 * 24 * 32, rel=0.005)
    assert costs.steps == 800 * 1_281_167 // 1024 + 1


def test_sampling_takes_the_published_time_less_the_operations_that_are_saved():
    size = PARAMS.size("mar-h")
    ours = sum(sampling_flops(size.model, size.sampling))
    published = sum(published_sampling_flops(size.model, size.sampling))
    seconds = plan_for("mar-h", gpu="h100-pcie").seconds_per_sample
    assert seconds == pytest.approx(1.29 * ours / published, rel=0.005)
    assert ours < 0.95 * published


def test_held_out_training_images_cost_no_time():
    size = PARAMS.size("mar-l")
    recipe = size.training.model_copy(update={"holdout": 0.25})
    less = size.model_copy(update={"training": recipe})
    whole, part = (
        plan(s, gpu=find_gpu("h100"), gpus=1, splits={"train": 1000}) for s in (size, less)
    )
    assert (whole.images, part.images) == (1000, 750)
    assert part.gpu_hours == pytest.approx(0.75 * whole.gpu_hours)


def test_time_falls_with_gpus_and_utilisation():
    days = plan_for().training_days
    assert plan_for(gpus=64).training_days == pytest.approx(days / 2)
    assert plan_for(utilisation=0.169 * 2).training_days == pytest.approx(days / 2)


def test_the_recipe_fits_only_with_activation_checkpointing():
    costs = plan_for("mar-l")
    available = costs.gpu.memory_gb * 1e9
    assert costs.memory_checkpointed.total < available < costs.memory_selective.total
    assert costs.memory_selective.total < costs.memory.total


def test_digits_has_its_own_number_of_images_and_float32_peak():
    costs = plan_for("digits", gpus=2)
    recipe = PARAMS.training["digits"]
    assert (costs.images, costs.images_per_gpu) == (1500, recipe.batch_size // 2)
    assert costs.steps == math.ceil(recipe.epochs * 1500 / recipe.batch_size)
    executed = recipe.epochs * 1500 * sum(part.training_flops for part in costs.parts)
    reached = 2 * GPUS["h100"].float32_tflops * 1e12 * costs.utilisation
    assert costs.training_days * 86_400 == pytest.approx(executed / reached)


def test_muon_takes_less_memory_and_disk_and_more_operations():
    size = PARAMS.size("mar-b")
    changed = size.model_copy(
        update={"training": size.training.model_copy(update={"optimizer": "muon"})}
    )
    adamw, muon = (
        plan(s, gpu=find_gpu("h100"), gpus=32, splits={"train": 102_400}) for s in (size, changed)
    )
    with torch.device("meta"):
        blocks = [m for m in FractalModel(size.model).modules() if isinstance(m, Block)]
    layers = [m for block in blocks for m in block.modules() if isinstance(m, nn.Linear)]
    saved = 4 * sum(layer.weight.numel() for layer in layers)
    assert adamw.memory.total - muon.memory.total == pytest.approx(saved)
    assert adamw.disk.checkpoint - muon.disk.checkpoint == pytest.approx(saved)
    assert (adamw.optimizer_flops, muon.steps) == (0, 80_000)
    added = muon.steps * muon.optimizer_flops / (muon.gpu.peak("bfloat16") * muon.utilisation)
    assert (muon.training_days - adamw.training_days) * 86_400 == pytest.approx(added)


def test_uniform_masks_have_fewer_rows():
    size = PARAMS.size("mar-b")
    recipe = size.training.model_copy(update={"mask_ratio": "uniform"})
    changed = size.model_copy(update={"training": recipe})
    published, uniform = (
        plan(s, gpu=find_gpu("h100"), gpus=32, splits={"train": 1000}) for s in (size, changed)
    )
    rows = [part.rows for part in uniform.parts]
    assert rows == pytest.approx([1, 257 / 2, 257 / 2 * 17 / 2, 257 / 2 * (17 / 2) ** 2])
    assert uniform.training_days < 0.65 * published.training_days
    assert uniform.memory.activations.kept < published.memory.activations.kept


@pytest.mark.parametrize("decays", [(0.999,), (0.9, 0.999, 0.9999)])
def test_each_moving_average_takes_memory_and_disk(decays):
    size = PARAMS.size("mar-b")
    training = size.training.model_copy(update={"ema_decays": decays})
    averaged = size.model_copy(update={"training": training})
    without, with_average = (
        plan(s, gpu=find_gpu("h100"), gpus=32, splits={"train": 1000}) for s in (size, averaged)
    )
    weights = len(decays) * 4 * PARAMETERS["mar-b"]
    assert with_average.memory.total - without.memory.total == pytest.approx(weights)
    assert with_average.disk.checkpoint - without.disk.checkpoint == pytest.approx(weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus": 0}, "gpus is 0, expected 1 … 10,000"),
        ({"gpus": 2**31}, "gpus is 2147483648, expected 1"),
        ({"gpus": -3}, "gpus is -3, expected 1 … 10,000"),
        ({"gpus": 24}, "batch_size 1024 does not divide by 24 GPUs.*8, 16, 32"),
        ({"batch_size": 100}, "batch_size 100 does not divide by 32 GPUs"),
        ({"batch_size": 0}, "batch_size is 0, expected 1 … 1,000,000"),
        ({"batch_size": 10**400}, "expected 1 … 1,000,000"),
        ({"utilisation": 0.0}, "utilisation 0.0 is out of range: give a share above 0, at most 1"),
        ({"utilisation": 1.5}, "utilisation 1.5 is out of range"),
        ({"utilisation": float("nan")}, "utilisation nan is out of range"),
        ({"sampling_utilisation": -1.0}, "utilisation -1.0 is out of range"),
    ],
)
def test_a_number_out_of_range_is_refused(options, message):
    with pytest.raises(FractalError, match=message):
        plan_for(**options)


def test_an_unknown_data_set_is_refused():
    with pytest.raises(FractalError, match="'faces' is unknown: .* or give the number"):
        dataset_splits(PARAMS, "faces")
    with pytest.raises(FractalError, match="images is 0, expected"):
        dataset_splits(PARAMS, "faces", 0)


def test_a_user_s_data_set_has_its_own_number_of_images(tmp_path):
    """The number comes from the prepared data set. It needs no ImageNet archives."""
    paths = PARAMS.paths.model_copy(update={"data": tmp_path})
    params = PARAMS.model_copy(update={"paths": paths})
    save_images(tmp_path / "faces", count=11)
    assert dataset_splits(params, "faces") == {"validation": 11}
    assert dataset_splits(params, "faces", 500) == {"train": 500}
    size = PARAMS.size("mar-b")
    other = size.model_copy(
        update={"training": size.training.model_copy(update={"dataset": "faces"})}
    )
    costs = plan(other, gpu=find_gpu("h100"), gpus=32, splits={"train": 500})
    assert costs.images == 500
    assert costs.disk.raw_archives == 0
    assert plan_for("mar-b").disk.raw_archives > 0


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["plan", *arguments, "--params", str(SHIPPED)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mar-x",), "size 'mar-x' is unknown, did you mean 'mar-"),
        (("mar-l", "--gpu", "tpu"), "GPU 'tpu' is unknown: choose h100, h100-pcie"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_names(arguments, message):
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
