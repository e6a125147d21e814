"""A holdout divides the training images in two, the same way each time."""

from __future__ import annotations

import pickle

import pytest
import torch

from fractal_model.data.digits import prepare_digits
from fractal_model.data.holdout import (
    count_training_images,
    open_held_out_images,
    open_training_images,
)
from fractal_model.data.loader import read_batch, train_loader
from fractal_model.data.prepared import open_prepared


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    prepare_digits(folder, validation_images=1600, seed=0)
    return folder


def test_each_training_image_is_on_one_side(digits):
    seen, held_out = open_training_images(digits, 0.1), open_held_out_images(digits, 0.1)
    whole = open_prepared(digits, "train")
    assert (len(whole), len(seen), len(held_out)) == (197, 177, 20)
    assert count_training_images(whole.manifest, 0.1) == 177
    assert sorted([*seen.rows, *held_out.rows]) == list(range(197))
    for part in (seen, pickle.loads(pickle.dumps(held_out))):
        assert part.labels().tolist() == whole.labels()[part.rows].tolist()
        images, labels = part.load_all()
        expected = read_batch(whole, part.rows)
        assert torch.equal(images, expected.images) and torch.equal(labels, expected.labels)
    with pytest.raises(IndexError):
        held_out[20]


def test_the_choice_is_spread_over_the_images(digits):
    rows = open_held_out_images(digits, 0.1).rows
    assert rows.min() < 50 and rows.max() > 147
    assert rows.tolist() == open_held_out_images(digits, 0.1).rows.tolist()


def test_an_epoch_of_the_loader_has_the_training_part_alone(digits):
    part = open_training_images(digits, 0.5)
    loader = train_loader(part, seed=3, position=0, batch_size=len(part), end_position=len(part))
    (batch,) = loader
    assert sorted(batch.indices.tolist()) == part.rows.tolist(), "positions in the whole split"
    assert sorted(batch.labels.tolist()) == sorted(part.labels().tolist())


def test_without_a_holdout_the_splits_are_whole(digits):
    assert open_training_images(digits, 0).rows is None
    assert open_held_out_images(digits, 0).name == "validation"
    assert count_training_images(open_prepared(digits, "train").manifest, 0) == 197
