"""Class agreement on real digits."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from fractal_model.common.errors import FractalError
from fractal_model.metrics.class_agreement import nearest_neighbour_agreement


@pytest.fixture(scope="module")
def digits():
    """Shuffled real digits: 300 held out, the rest as the reference."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(data.images)[order].mul(255 / 16).round().to(torch.uint8)
    images = images[:, None].repeat(1, 3, 1, 1)
    labels = torch.from_numpy(data.target)[order]
    return images[:300], labels[:300], images[300:], labels[300:]


def test_real_digits_agree_with_their_classes(digits):
    assert nearest_neighbour_agreement(*digits) > 0.97


def test_shuffled_labels_do_not_agree(digits):
    held, labels, reference, reference_labels = digits
    shuffled = labels[torch.randperm(300, generator=torch.Generator().manual_seed(1))]
    assert nearest_neighbour_agreement(held, shuffled, reference, reference_labels) < 0.25


def test_differences_of_dark_and_bright_do_not_wrap_around():
    """In uint8 arithmetic, 255 would be next to 0."""
    reference = torch.tensor([0, 100, 180], dtype=torch.uint8).reshape(3, 1, 1, 1)
    reference = reference.repeat(1, 3, 1, 1)
    sample = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    share = nearest_neighbour_agreement(
        sample, torch.tensor([2]), reference, torch.arange(3), neighbours=1
    )
    assert share == 1.0


def test_wrong_input_is_refused(digits):
    held, labels, reference, reference_labels = digits
    with pytest.raises(FractalError, match=r"images of \(3, 8, 7\), expected the reference's"):
        nearest_neighbour_agreement(held[..., :7], labels, reference, reference_labels)
    with pytest.raises(FractalError, match="samples: found 300 images and labels of shape"):
        nearest_neighbour_agreement(held, labels[:9], reference, reference_labels)
    with pytest.raises(FractalError, match="reference: found 1497 images and labels of shape"):
        nearest_neighbour_agreement(held, labels, reference, reference_labels[:9])
    with pytest.raises(FractalError, match="samples: the number of images is 0"):
        nearest_neighbour_agreement(held[:0], labels[:0], reference, reference_labels)
    with pytest.raises(FractalError, match="reference: the number of images is 2, expected 3"):
        nearest_neighbour_agreement(held, labels, reference[:2], reference_labels[:2])
    with pytest.raises(FractalError, match="neighbours: found 0"):
        nearest_neighbour_agreement(held, labels, reference, reference_labels, neighbours=0)
