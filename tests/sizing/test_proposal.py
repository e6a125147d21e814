"""A proposal is valid for every data set and machine, and follows the budget."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from fractal_model.common.errors import FractalError
from fractal_model.config.params import load_params
from fractal_model.sizing.choices import ImageSet
from fractal_model.sizing.proposal import (
    Request,
    duration,
    measured_speed,
    propose,
    training_seconds,
)
from tests.support.params import SHIPPED
from tests.support.sizing import DIGITS, FLOWERS, IMAGENET, LAPTOP, NODE, request

PARAMS = load_params(SHIPPED)
SETS = [
    ImageSet("x", side, classes, train, held_out)
    for side, classes, train, held_out in product(
        (8, 64, 256), (1, 1000), (3, 60, 2000, 2_000_000), (0, 40)
    )
]


def following(size: str, **options: object) -> Request:
    return request(like=PARAMS.size(size), like_row=PARAMS.models[size], **options)


@pytest.mark.parametrize("machine", [LAPTOP, NODE], ids=["laptop", "node"])
def test_every_data_set_gets_valid_settings(machine):
    for images in SETS:
        size = propose(request(images, machine)).size("x")
        recipe, protocol = size.training, size.evaluation
        assert size.model.image_size == images.resolution
        assert recipe.batch_size <= images.train and recipe.batch_size % recipe.workers == 0
        samples = protocol.samples_per_class * images.classes
        assert protocol.kid_subset_size <= max(2, min(samples, images.train))
        assert protocol.preview_per_class <= protocol.samples_per_class
        size.sampling.level_iterations(size.model)


def test_the_budget_decides_the_epochs_and_the_width():
    budgets = (600.0, 3600.0, 36_000.0, 360_000.0)
    sizes = [propose(request(budget=budget)).size("x") for budget in budgets]
    widths = [size.model.levels[0].width for size in sizes]
    assert widths == sorted(widths) and widths[0] < widths[-1]
    for size, budget in zip(sizes, budgets, strict=True):
        seconds = training_seconds(size, FLOWERS.train, LAPTOP.training_speed)
        assert seconds <= budget + 30
    assert sizes[-1].training.epochs == 100  # few images


def test_a_short_budget_draws_the_fewest_samples_and_says_so():
    images = replace(FLOWERS, train=150)
    longer, short = (propose(request(images, budget=budget)) for budget in (360_000.0, 60.0))
    choices = [p.sections["evaluation"]["samples_per_class"] for p in (longer, short)]
    assert choices[0].value > choices[1].value
    assert choices[1].reason.endswith("in all: the fewest for a rough FID")
    few = propose(request(ImageSet("x", 8, 3, 60, 6), budget=360_000.0))
    assert few.sections["evaluation"]["samples_per_class"].reason.endswith("a rough FID")
    published = propose(request(IMAGENET, NODE, budget=60 * 86_400.0))
    assert (
        "50,000 in all: as published"
        in published.sections["evaluation"]["samples_per_class"].reason
    )


def test_the_published_data_on_gpus_get_a_published_width():
    proposal = propose(request(IMAGENET, NODE, budget=60 * 86_400.0))
    assert proposal.size("x").model.levels[0].width == 1024
    assert proposal.notes == ()


def test_a_machine_without_a_gpu_gets_ar_levels_whose_average_is_measured():
    laptop, node = (propose(request(machine=machine)).size("x") for machine in (LAPTOP, NODE))
    assert laptop.model.is_autoregressive and not node.model.is_autoregressive
    assert laptop.sampling.level_iterations(laptop.model) == laptop.sampling.iterations
    assert laptop.training.validation.passes == laptop.evaluation.likelihood_passes == 1
    assert (laptop.evaluation.weights, node.evaluation.weights) == ("ema", "model")


def test_workers_get_two_images_each_where_one_takes_noise_from_the_other():
    many = replace(LAPTOP, cores=32, memory_bytes=256e9)
    training = propose(request(replace(FLOWERS, train=300), many)).size("x").training
    assert training.images_per_worker >= 2 and training.context_noise == 0.1
    tiny = propose(request(replace(FLOWERS, train=3), many)).size("x").training
    assert (tiny.images_per_worker, tiny.context_noise) == (1, 0.0)


def test_large_images_get_mar_levels_on_a_cpu_too():
    large = propose(request(replace(FLOWERS, resolution=128))).size("x")
    assert not large.model.is_autoregressive


def test_a_measured_speed_replaces_the_estimate():
    slow = propose(request(speed=LAPTOP.training_speed / 4)).size("x").training.epochs
    assert slow < propose(request()).size("x").training.epochs


def test_the_speed_of_a_step_is_that_of_all_workers():
    size = propose(request()).size("x")
    speed = measured_speed(size, seconds_per_image=0.5)
    alone = training_seconds(size, FLOWERS.train, speed) - 30
    assert alone == pytest.approx(size.training.epochs * FLOWERS.train * 0.5 / 2)


def test_a_size_to_follow_keeps_its_architecture_and_epochs():
    images = replace(IMAGENET, classes=5, train=4000)
    size = propose(following("mar-64", images=images)).size("x")
    model = PARAMS.models["mar-64"].model_copy(update={"num_classes": 5}).to_model()
    assert size.model == model
    assert size.training.epochs == 800
    assert size.training.batch_size < 2048  # fewer images are seen
    assert size.sampling == PARAMS.sampling["mar-64"]
    shorter = propose(following("mar-64", images=images, budget=86_400.0)).size("x")
    assert shorter.training.epochs < 800


def test_options_of_a_size_to_follow_are_kept_and_counted():
    like = PARAMS.size("digits")
    recipe = like.training.model_copy(update={"mask_ratio": "uniform", "context_noise": 0.1})
    plain = following("digits", images=DIGITS, budget=60.0)
    changed = replace(plain, like=like.model_copy(update={"training": recipe}))
    ours, published = (propose(r).size("x").training for r in (changed, plain))
    assert (ours.mask_ratio, ours.context_noise) == ("uniform", 0.1)
    assert ours.epochs > published.epochs  # Fewer masks are fewer rows.
    single = propose(replace(changed, most_at_a_time=1)).size("x").training
    assert (single.images_per_worker, single.context_noise) == (1, 0.0)


def test_a_size_to_follow_must_have_the_resolution():
    with pytest.raises(FractalError, match="mar-b is for images of 256 px"):
        propose(following("mar-b"))


def test_the_recipe_of_digits_is_proposed_for_digits():
    size, shipped = propose(following("digits", images=DIGITS)).size("x"), PARAMS.size("digits")
    same = ("epochs", "warmup_epochs", "batch_size", "betas", "label_drop", "images_per_worker")
    for key in (*same, "workers", "validate_every_epochs"):
        assert getattr(size.training, key) == getattr(shipped.training, key), key
    assert size.model == shipped.model


def test_a_hopeless_budget_is_said():
    images = replace(FLOWERS, resolution=256)
    proposal = propose(request(images, budget=60.0))
    assert proposal.training["epochs"] == (1, "even one takes more than 1 minute")
    (note,) = proposal.notes
    assert "give it more time, or register the images with a lower resolution" in note


def test_missing_held_out_images_are_said():
    (note,) = propose(request(replace(FLOWERS, held_out=0))).notes
    assert note.startswith("without held-out images")


def test_one_class_is_drawn_without_guidance():
    proposal = propose(request(replace(FLOWERS, classes=1)))
    assert proposal.size("x").sampling.guidance == 1.0


def test_flip_is_off_unless_asked_for():
    assert not propose(request()).size("x").training.flip
    assert propose(request(flip=True)).size("x").training.flip


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (20, "less than a minute"),
        (60, "1 minute"),
        (1500, "25 minutes"),
        (3600, "60 minutes"),
        (12_600, "3.5 hours"),
        (7200, "2 hours"),
        (86_400, "24 hours"),
        (864_000, "10 days"),
    ],
)
def test_a_length_of_time_in_words(seconds, words):
    assert duration(seconds) == words
