"""The digits are exactly the source's, in a fixed and stratified split."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fractal_model.common.errors import FractalError
from fractal_model.data.digits import CLASS_NAMES, digits_splits


def keys(split):
    """Hashable keys of the images and labels of a split."""
    return [(image.tobytes(), label) for image, label in split]


def test_grey_values_can_be_inverted_to_the_source():
    splits = digits_splits(validation_images=297, seed=0)
    source = load_digits()
    pairs = zip(source.images.astype(np.uint8), source.target.tolist(), strict=True)
    expected = {(image.tobytes(), label) for image, label in pairs}
    inverted = set()
    for image, label in splits["train"] + splits["validation"]:
        assert image.dtype == np.uint8 and image.shape == (8, 8, 3)
        assert (image == image[..., :1]).all()
        values = np.rint(image[..., 0].astype(float) * 16 / 255).astype(np.uint8)
        inverted.add((values.tobytes(), label))
    assert inverted == expected
    assert max(image.max() for image, _ in splits["train"]) == 255


def test_every_grey_value_can_be_inverted():
    values = np.arange(17)
    assert (np.rint((values * 255 + 8) // 16 * 16 / 255) == values).all()


def test_splits_are_disjoint_and_complete():
    splits = digits_splits(validation_images=297, seed=0)
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 1500,
        "validation": 297,
    }
    source = load_digits()
    assert len(set(map(bytes, source.images.astype(np.uint8)))) == 1797, "images are distinct"
    assert not set(keys(splits["train"])) & set(keys(splits["validation"]))


@pytest.mark.parametrize("validation_images", [10, 297, 900])
def test_the_split_is_stratified(validation_images):
    splits = digits_splits(validation_images=validation_images, seed=3)
    held_out = np.bincount([label for _, label in splits["validation"]], minlength=10)
    total = np.bincount(load_digits().target, minlength=10)
    assert held_out.sum() == validation_images
    assert (abs(held_out - total * validation_images / 1797) < 1).all()
    assert len(CLASS_NAMES) == 10


def test_the_split_depends_on_the_seed_alone():
    first = digits_splits(validation_images=297, seed=5)
    np.random.seed(1)  # the global state must not matter
    again = digits_splits(validation_images=297, seed=5)
    other = digits_splits(validation_images=297, seed=6)
    assert keys(first["validation"]) == keys(again["validation"])
    assert keys(first["train"]) == keys(again["train"])
    assert keys(first["validation"]) != keys(other["validation"])


@pytest.mark.parametrize("validation_images", [-1, 0, 9, 1788, 5000])
def test_a_split_without_every_class_is_refused(validation_images):
    with pytest.raises(FractalError, match=rf"^validation_images is {validation_images}, .*1787"):
        digits_splits(validation_images=validation_images, seed=0)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(FractalError, match=f"^seed is {seed}, expected 0 to 4294967295"):
        digits_splits(validation_images=297, seed=seed)
