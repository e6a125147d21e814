"""Measure a model: held-out likelihood, samples, and what the samples are like.

Knows no registry and no tracker: models and data in, numbers and images out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fractal_model.animation import animate
from fractal_model.data.loader import evaluation_batches
from fractal_model.data.prepared import PreparedSplit
from fractal_model.metrics.agreement import nearest_neighbour_agreement
from fractal_model.metrics.evaluate import MetricResults, image_metrics
from fractal_model.metrics.inception import NO_CLASSIFIER, InceptionFeatures, extract_features
from fractal_model.metrics.reference import Reference
from fractal_model.metrics.settings import EvaluationConfig
from fractal_model.model.fractal import FractalModel
from fractal_model.model.likelihood import likelihood
from fractal_model.sampling.sampler import Sampler
from fractal_model.sampling.settings import SamplingConfig

AGREEMENT_LARGEST_SIDE = 16
GROWING_IMAGES = 3
Progress = Callable[[int], None]
"""Called with the number of images done so far."""


@dataclass(frozen=True)
class Samples:
    """A balanced set of samples, in class order."""

    images: Tensor
    """(N, 3, S, S) uint8"""
    labels: Tensor
    """(N,) int64"""
    seconds: float


def held_out_likelihood(
    model: FractalModel, split: PreparedSplit, settings: EvaluationConfig, progress: Progress
) -> dict[str, float]:
    """`nll_bits_per_dim`, unconditional, and its standard error over the images."""

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        done = 0
        for batch in evaluation_batches(split, batch_size=settings.batch_size):
            yield batch
            done += len(batch.images)
            progress(done)

    found = likelihood(model, batches(), passes=settings.likelihood_passes, seed=settings.seed)
    return {
        "nll_bits_per_dim": found.mean,
        "nll_bits_per_dim_stderr": found.standard_error,
    }


def balanced_samples(
    model: FractalModel,
    sampling: SamplingConfig,
    settings: EvaluationConfig,
    progress: Progress,
) -> Samples:
    """The same number of images of each class; image i has the seed `settings.seed` + i."""
    classes = model.config.num_classes
    labels = torch.arange(classes).repeat_interleave(settings.samples_per_class)
    sampler = Sampler(model, sampling)
    started, images = time.monotonic(), []
    for start in range(0, len(labels), settings.batch_size):
        part = labels[start : start + settings.batch_size]
        first = settings.seed + start
        images.append(sampler(part, range(first, first + len(part))))
        progress(start + len(part))
    return Samples(torch.cat(images), labels, time.monotonic() - started)


def growth(
    model: FractalModel, sampling: SamplingConfig, settings: EvaluationConfig, folder: Path
) -> tuple[Path, Path]:
    """An animation of the generation of the first classes' images, and a still sheet of it."""
    labels = torch.arange(min(GROWING_IMAGES, model.config.num_classes))
    seeds = range(settings.seed, settings.seed + len(labels))
    return animate(model, labels, seeds, sampling, folder / "growth.gif")


def sample_metrics(
    samples: Samples,
    train: PreparedSplit,
    reference: Reference,
    inception: InceptionFeatures,
    settings: EvaluationConfig,
    progress: Progress,
) -> MetricResults:
    """FID, KID, precision and recall against the reference, class agreement, and speed.

    FractalError when the reference is of other images or of another network.
    """
    reference.require(
        dataset_checksum=train.manifest.checksum, weights_checksum=inception.weights_checksum
    )
    features = extract_features(samples.images.split(50), inception, progress)
    found = image_metrics(
        features,
        reference.features,
        kid_subsets=settings.kid_subsets,
        kid_subset_size=settings.kid_subset_size,
        seed=settings.seed,
        logits=inception.logits_from_features(features) if inception.has_classifier else None,
        reason_no_logits=NO_CLASSIFIER,
    )
    count = len(samples.images)
    speed = {
        "seconds_per_image": samples.seconds / count,
        "images_per_second": count / samples.seconds,
    }
    agreement = class_agreement(samples, train)
    return MetricResults(found.values | agreement.values | speed, found.absent | agreement.absent)


def class_agreement(samples: Samples, train: PreparedSplit) -> MetricResults:
    """`class_agreement`, for images small enough that their pixels are comparable."""
    if train.manifest.resolution > AGREEMENT_LARGEST_SIDE:
        reason = (
            f"neighbours in pixels say nothing of images over {AGREEMENT_LARGEST_SIDE} px, these "
            f"have {train.manifest.resolution}"
        )
        return MetricResults({}, {"class_agreement": reason})
    share = nearest_neighbour_agreement(samples.images, samples.labels, *train.load_all())
    return MetricResults({"class_agreement": share}, {})
