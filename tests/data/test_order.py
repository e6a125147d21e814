"""The order of the images is a pure function of (seed, epoch, position)."""

import numpy as np
import pytest

from fractal_model.common.errors import FractalError
from fractal_model.data.order import (
    epoch_flips,
    epoch_permutation,
    stream_flips,
    stream_indices,
)


def test_the_first_values_never_change():
    """The position in a checkpoint must mean the same images in every later version."""
    assert epoch_permutation(0, 0, 10).tolist() == [7, 6, 8, 3, 2, 4, 1, 5, 0, 9]
    assert epoch_permutation(7, 3, 10).tolist() == [2, 1, 7, 9, 6, 5, 4, 3, 8, 0]
    assert epoch_flips(7, 3, 10).astype(int).tolist() == [1, 1, 0, 0, 1, 0, 1, 1, 0, 0]


@pytest.mark.parametrize("size", [1, 2, 97])
def test_an_epoch_has_each_image_once(size):
    for epoch in range(3):
        order = epoch_permutation(11, epoch, size)
        assert order.dtype == np.int64
        assert sorted(order.tolist()) == list(range(size))


def test_epochs_and_seeds_differ():
    orders = {tuple(epoch_permutation(s, e, 50).tolist()) for s in range(3) for e in range(3)}
    assert len(orders) == 9


def test_permutations_are_uniform():
    first = np.bincount([epoch_permutation(0, epoch, 8)[0] for epoch in range(4000)], minlength=8)
    # Each count has mean 500 and standard deviation 21.
    assert abs(first - 500).max() < 4.5 * 21


def test_stream_is_the_epochs_one_after_the_other():
    whole = np.concatenate([epoch_permutation(5, epoch, 13) for epoch in range(4)])
    for start in range(0, 40):
        for count in (0, 1, 5, 12):
            indices = stream_indices(seed=5, start=start, count=count, size=13)
            assert indices.dtype == np.int64
            assert indices.tolist() == whole[start : start + count].tolist()
    assert stream_indices(seed=5, start=0, count=52, size=13).tolist() == whole.tolist()


def test_flips_follow_the_image_and_the_epoch():
    indices = stream_indices(seed=5, start=0, count=39, size=13)
    flips = stream_flips(seed=5, start=0, count=39, size=13)
    for position, (index, flip) in enumerate(zip(indices, flips, strict=True)):
        assert flip == epoch_flips(5, position // 13, 13)[index]
    assert flips[9:20].tolist() == stream_flips(seed=5, start=9, count=11, size=13).tolist()
    assert stream_flips(seed=5, start=9, count=0, size=13).tolist() == []


def test_half_of_the_images_are_flipped_and_epochs_differ():
    flips = np.stack([epoch_flips(2, epoch, 1000) for epoch in range(10)])
    assert abs(flips.mean() - 0.5) < 4.5 * 0.005
    assert len({row.tobytes() for row in flips}) == 10


def test_the_order_of_an_epoch_is_cached():
    for function in (epoch_permutation, epoch_flips):
        assert function(0, 0, 10) is function(0, 0, 10)


def test_cached_arrays_cannot_be_changed():
    for cached in (epoch_permutation(0, 0, 10), epoch_flips(0, 0, 10)):
        with pytest.raises(ValueError, match="read-only"):
            cached[0] = cached[1]


@pytest.mark.parametrize("function", [epoch_permutation, epoch_flips])
@pytest.mark.parametrize(
    ("arguments", "name"), [((-1, 0, 5), "seed"), ((0, -1, 5), "epoch"), ((0, 0, 0), "size")]
)
def test_epoch_arguments_out_of_range_are_refused(function, arguments, name):
    with pytest.raises(FractalError, match=rf"^{name} is -?\d, expected [01] or more$"):
        function(*arguments)


@pytest.mark.parametrize("function", [stream_indices, stream_flips])
@pytest.mark.parametrize("name", ["seed", "start", "count", "size"])
def test_stream_arguments_out_of_range_are_refused(function, name):
    arguments = {"seed": 0, "start": 0, "count": 1, "size": 5} | {name: -1}
    with pytest.raises(FractalError, match=rf"^{name} is -1, expected [01] or more$"):
        function(**arguments)
