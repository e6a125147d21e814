"""Several sets of samples are joined into one."""

from __future__ import annotations

import torch

from fractal_model.evaluation.samples import SamplesWithFeatures
from fractal_model.evaluation.sweep_previews import join_samples
from tests.support import random_images


class _InMemory:
    def __init__(self, images: torch.Tensor) -> None:
        self._images = images
        self.labels = torch.arange(len(images))
        self.side = images.shape[-1]

    def images(self, numbers) -> torch.Tensor:
        return self._images[list(numbers)]


def _samples(count: int, seed: int, seconds: float) -> SamplesWithFeatures:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 5, generator=generator)
    return SamplesWithFeatures(_InMemory(random_images(count, seed=seed)), features, None, seconds)


def test_joined_sets_keep_their_order():
    first, second = _samples(2, 1, 1.0), _samples(4, 2, 4.0)
    both = join_samples([first, second])
    assert both.images.labels.tolist() == [0, 1, 0, 1, 2, 3]
    assert both.images.images([0, 5, 2]).equal(
        torch.stack([random_images(2, seed=1)[0], *random_images(4, seed=2)[[3, 0]]])
    )
    assert both.inception.equal(torch.cat([first.inception, second.inception]))
    assert both.dinov2 is None
    assert both.seconds_per_image == 3.0
