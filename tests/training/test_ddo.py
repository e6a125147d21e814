"""The loss of a discriminative fine-tuning, and what a round does to a model of real digits."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from fractal_model.common.errors import FractalError
from fractal_model.config.ddo import DDOConfig
from fractal_model.config.params import load_params
from fractal_model.data.loader import read_batch
from fractal_model.generation.sample_images import collect_images
from fractal_model.model.fractal import NO_CLASS
from fractal_model.model.likelihood import pass_bits
from fractal_model.training.ddo import (
    Samples,
    discriminative_loss,
    log_likelihoods,
    require_exact_likelihood,
    round_images,
    sample_plan,
    tune_round,
    tuning_recipe,
)
from tests.support import images_for, tiny_model
from tests.support.params import SHIPPED
from tests.support.tuning import SETTINGS, digits_split, tiny_ar_size, trained_model

SIZE = tiny_ar_size()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def split(data):
    return digits_split(data)


@pytest.fixture(scope="module")
def model(split, data):
    return trained_model(data)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_loss_is_that_of_a_discriminator():
    real, sampled = [1.0, -2.0, 30.0], [0.5, 3.0]
    loss = discriminative_loss(torch.tensor(real), torch.tensor(sampled), alpha=2.0, beta=0.5)
    expected = -sum(math.log(sigmoid(0.5 * x)) for x in real) / 3
    expected -= 2 * sum(math.log(1 - sigmoid(0.5 * x)) for x in sampled) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_the_gradient_raises_real_images_and_lowers_samples():
    ratios = torch.zeros(2, requires_grad=True)
    discriminative_loss(ratios[:1], ratios[1:], alpha=3.0, beta=0.1).backward()
    assert ratios.grad.tolist() == pytest.approx([-0.05, 0.15])


def test_log_likelihoods_are_those_of_an_evaluation():
    model = tiny_model("ar")
    images, labels = images_for(model, 3), torch.tensor([0, 3, NO_CLASS])
    bits = pass_bits(model, images, [0, 1, 2], passes=1, labels=labels)[:, 0]
    with torch.no_grad():
        ours = log_likelihoods(model, images, labels)
    torch.testing.assert_close(ours, -bits * math.log(2) * 3 * 4 * 4)


def test_the_samples_have_the_classes_of_the_training_images():
    settings = DDOConfig(samples=100)
    sampling, labels, seeds = sample_plan(SIZE, settings, (10, 0, 30, 60), 1)
    assert labels.bincount(minlength=4).tolist() == [10, 0, 30, 60]
    assert (sampling.guidance, sampling.logit_scale) == (1.0, 1.0)
    assert len(seeds) == 100 and seeds[0] >= 0 and seeds[-1] < 2**32
    assert sample_plan(SIZE, settings, (10, 0, 30, 60), 2)[2] != seeds


def test_a_round_sees_its_share_in_whole_batches():
    assert round_images(SIZE, SETTINGS, 1500) == 160  # 0.05 · 2 · 1,500 = 150
    assert round_images(SIZE, DDOConfig(share=1e-6), 1500) == 32  # one batch of the recipe
    loading = SIZE.training.model_copy(update={"loader_processes": 2})
    recipe = tuning_recipe(SIZE.model_copy(update={"training": loading}), SETTINGS, 1)
    assert recipe.loader_processes == 0, "a process of a Prefect flow cannot fork"
    assert (recipe.epochs, recipe.batch_size) == (1, 16)
    assert recipe.peak_learning_rate == pytest.approx(2e-3)
    assert recipe.seed != tuning_recipe(SIZE, SETTINGS, 2).seed


def test_tuning_raises_real_digits_above_samples_and_lowers_the_loss(split, model):
    settings = SETTINGS.model_copy(update={"share": 0.1, "samples": 160})
    images = round_images(SIZE, settings, len(split))
    per_class = split.manifest.splits["train"].images_per_class
    sampling, labels, seeds = sample_plan(SIZE, settings, per_class, 1)
    reference = copy.deepcopy(model)
    samples = Samples(collect_images(reference, sampling, labels, seeds), labels)
    recipe = tuning_recipe(SIZE, settings, 1)
    before = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    trainer, steps = tune_round(
        reference, samples, split, recipe, settings, images=images, device=torch.device("cpu")
    )
    steps = list(steps)
    assert len(steps) == 19 and steps[-1].position == images
    assert steps[0].loss == pytest.approx(2 * math.log(2))  # The ratios are 0 at the start.
    assert (steps[0].real_ratio, steps[0].sampled_ratio) == pytest.approx((0, 0), abs=1e-5)
    assert sum(step.loss for step in steps[-5:]) / 5 < 0.97 * steps[0].loss
    # Also on other samples and, but for a few, on other digits than those of the round.
    other = read_batch(split, range(1000, 1080))
    with torch.no_grad():
        unseen = collect_images(model, sampling, labels[::2], range(seeds[-1] + 1, seeds[-1] + 81))
        real, sampled = (
            log_likelihoods(trainer.model, x, y) - log_likelihoods(reference, x, y)
            for x, y in ((other.images, other.labels), (unseen, labels[::2]))
        )
    error = (real.var() / 80 + sampled.var() / 80).sqrt()
    assert real.mean() - sampled.mean() > 3 * error
    assert all(tensor.equal(before[name]) for name, tensor in reference.state_dict().items())


def test_a_size_with_mar_levels_is_refused():
    with pytest.raises(FractalError, match="digits has MAR levels, whose likelihood .* only as a"):
        require_exact_likelihood(load_params(SHIPPED).size("digits"))
