"""The least times of a GPU: operations as counted elsewhere, bytes as counted by hand."""

from __future__ import annotations

import pytest

from fractal_model.common.gpus import find_gpu
from fractal_model.config.architecture import Architecture
from fractal_model.config.params import Size, load_params
from fractal_model.config.training import CHECKPOINTING
from fractal_model.costs.flops import sampling_flops
from fractal_model.costs.plan import plan
from fractal_model.costs.roofline import sampling_floor, training_floor
from tests.support.params import IMAGENET_SIZES, SHIPPED

PARAMS = load_params(SHIPPED)
H100 = find_gpu("h100")
ONE_LEVEL = Architecture(
    patch_sizes=(2, 1),
    widths=(16, 8),
    blocks=(3, 2),
    heads=(2, 2),
    generators=("ar",),
    num_classes=2,
    dropout=0.0,
)


def one_level(*, recomputed: bool | str = False) -> Size:
    size = PARAMS.size("digits-nll")
    recipe = size.training.model_copy(update={"activation_checkpointing": recomputed})
    sampling = size.sampling.model_copy(update={"iterations": ()})
    changes = {"model": ONE_LEVEL.to_model(), "training": recipe, "sampling": sampling}
    return size.model_copy(update=changes)


@pytest.mark.parametrize("name", IMAGENET_SIZES)
def test_operations_are_those_of_the_planner(name):
    size = PARAMS.size(name)
    trained = sum(floor.flops for floor in training_floor(size, 32))
    costs = plan(size, gpu=H100, gpus=1, splits={"train": 10**6}, batch_size=32)
    assert all(part.training_flops_checkpointed > 0 for part in costs.parts)
    assert trained == 32 * sum(part.training_flops_checkpointed for part in costs.parts)
    sampled = [floor.flops for floor in sampling_floor(size, 8)]
    assert sampled == [8 * n for n in sampling_flops(size.model, size.sampling)]


def test_bytes_of_a_training_step_are_those_counted_by_hand():
    level, pixels = training_floor(one_level(), images=5)
    # Level: 1 row of 4 positions; SwiGLU's hidden width is 256. 4 · 16² + 3 · 16 · 256 weights.
    moved, weights = 5 * 4 * (14 * 16 + 2 * 256), 4 * 16**2 + 3 * 16 * 256
    assert level.bytes == 3 * 2 * 3 * (moved + weights)
    # Pixel network: 4 rows of 3 positions, hidden width 32. 4 · 8² + 2 · 8 · 32 weights.
    moved, weights = 5 * 4 * 3 * (14 * 8 + 2 * 32), 4 * 8**2 + 2 * 8 * 32
    assert pixels.bytes == 3 * 2 * 2 * (moved + weights)
    assert (level.kernels, pixels.kernels) == (3 * 5 * 3, 3 * 5 * 2)


def test_recomputing_moves_the_bytes_of_a_forward_pass_again():
    plain, selective, again = (
        training_floor(one_level(recomputed=choice), 5) for choice in CHECKPOINTING
    )
    assert selective == plain
    for before, after in zip(plain, again, strict=True):
        assert after.bytes / before.bytes == pytest.approx(4 / 3)
        assert after.flops > before.flops


def test_weights_are_read_in_each_step_of_sampling():
    one, many = (sampling_floor(one_level(), images) for images in (1, 1000))
    for first, last in zip(one, many, strict=True):
        assert first.kernels == last.kernels
        assert last.bytes < 1000 * first.bytes
        assert last.flops == pytest.approx(1000 * first.flops)
    # Level 0 has 4 steps of 3 blocks; each step has 3 of the pixel network's 2 blocks.
    assert [floor.kernels for floor in one] == [4 * 5 * 3, 4 * 3 * 5 * 2]


def test_cached_keys_and_values_are_read_again_at_each_position():
    level, pixels = sampling_floor(one_level(), images=5)
    # Guidance 2: two branches. Level: 4 positions, of which t = 1, 2, 3 read t earlier ones.
    new, cached = 4 * (14 * 16 + 2 * 256), (1 + 2 + 3) * 2 * 16
    weights = 4 * (4 * 16**2 + 3 * 16 * 256)
    assert level.bytes == 2 * 3 * (2 * 5 * (new + cached) + weights)
    new, cached = 4 * 3 * (14 * 8 + 2 * 32), 4 * (1 + 2) * 2 * 8
    weights = 4 * 3 * (4 * 8**2 + 2 * 8 * 32)
    assert pixels.bytes == 2 * 2 * (2 * 5 * (new + cached) + weights)


def test_a_mar_level_draws_its_guiding_pixels_once_and_skips_what_nobody_reads():
    size = PARAMS.size("mar-l")
    first, second, _, _ = sampling_floor(size, images=1)
    assert first.kernels == 64 * 5 * 32
    assert second.kernels == 64 * 16 * 5 * 8 + 64 * 3 * 5 * 3
    # All positions of all 32 blocks in all steps of both branches, and the weights of all steps.
    in_full = 64 * 2 * 261 * 32 * 22 * 1024 * 2
    weights = 64 * 32 * 12 * 1024**2 * 2
    assert 0.8 * in_full < first.bytes - weights < in_full
    partly = size.sampling.model_copy(update={"guidance_interval": (0.5, 1.0)})
    less = sampling_floor(size.model_copy(update={"sampling": partly}), images=1)
    assert less[0].bytes - weights < 0.8 * (first.bytes - weights)


def test_the_longer_of_operations_and_bytes_counts():
    floors = training_floor(PARAMS.size("mar-l"), 32)
    for floor in floors:
        by_flops, by_bytes = floor.flops / 989.4e12, floor.bytes / 3.35e12
        assert floor.seconds(H100) == max(by_flops, by_bytes)
    # Wide levels are limited by operations, narrow ones by the memory.
    assert floors[0].seconds(H100) == floors[0].flops / 989.4e12
    assert floors[-1].seconds(H100) == floors[-1].bytes / 3.35e12
