"""Measure a model: held-out likelihood, samples, and what the samples are like.

Knows no registry, no tracker and no cluster: models and data in, numbers and images out; who runs
the parts of the work is given as a `MapParts`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fractal_model.animation import animate
from fractal_model.data.loader import read_batch
from fractal_model.data.prepared import PreparedSplit
from fractal_model.errors import FractalError
from fractal_model.generation import sample_images
from fractal_model.metrics.agreement import nearest_neighbour_agreement
from fractal_model.metrics.evaluate import MetricResults, image_metrics
from fractal_model.metrics.inception import NO_CLASSIFIER, InceptionFeatures, extract_features
from fractal_model.metrics.reference import Reference
from fractal_model.metrics.settings import EvaluationConfig
from fractal_model.model.fractal import NO_CLASS, FractalModel
from fractal_model.model.likelihood import Likelihood, is_exact, mask_seeds, pass_bits
from fractal_model.parts import LARGEST_PART, MapParts, Work, in_this_process
from fractal_model.randomness import LARGEST_SEED
from fractal_model.sampling.settings import SamplingConfig

AGREEMENT_LARGEST_SIDE = 16
GROWING_IMAGES = 3
MOST_PASSES = 10_000
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


def measure_likelihood(
    model: FractalModel,
    split: PreparedSplit,
    progress: Progress,
    *,
    passes: int,
    seed: int,
    conditional: bool = False,
    largest: int = LARGEST_PART,
    map_parts: MapParts = in_this_process,
) -> Likelihood:
    """Bits per dimension of every image of a split, unconditional unless asked otherwise; at most
    `largest` images at a time. FractalError: images that are not this model's, bad numbers."""
    _require_fit(model, split, conditional=conditional)
    _require_legal(passes=passes, seed=seed, largest=largest)
    exact = is_exact(model.config)
    per_pass = torch.empty(len(split), 1 if exact else passes, dtype=torch.float64)
    start = partial(_likelihood_work, model, split, passes, seed, conditional)
    done = 0
    for part, bits in map_parts(start, len(split), largest=largest):
        per_pass[part.start : part.stop] = bits
        done += len(part)
        progress(done)
    return Likelihood(per_pass, exact)


def _likelihood_work(
    model: FractalModel,
    split: PreparedSplit,
    passes: int,
    seed: int,
    conditional: bool,
    device: torch.device,
) -> Work:
    model = model.to(device)

    def work(part: range) -> Tensor:
        images, labels, indices = read_batch(split, part)
        if not conditional:
            labels = torch.full_like(labels, NO_CLASS)
        seeds = mask_seeds(seed, indices.tolist())
        return pass_bits(model, images.to(device), seeds, passes=passes, labels=labels.to(device))

    return work


def _require_fit(model: FractalModel, split: PreparedSplit, *, conditional: bool) -> None:
    """An unconditional likelihood does not ask what the classes are."""
    config, found = model.config, split.manifest
    if found.resolution != config.image_size:
        raise FractalError(
            f"the data set {found.dataset} has {found.resolution} px, the model "
            f"{config.image_size} px: prepare the images at the model's size"
        )
    classes = len(found.class_names)
    unlike = config.class_names and config.class_names != found.class_names
    if conditional and (classes != config.num_classes or unlike):
        raise FractalError(
            f"the {classes} classes of the data set {found.dataset} are not the "
            f"{config.num_classes} that the model knows: measure it on the classes that it was "
            f"made for, or without --conditional"
        )


def _require_legal(*, passes: int, seed: int, largest: int) -> None:
    if not 1 <= passes <= MOST_PASSES or largest < 1 or not 0 <= seed <= LARGEST_SEED:
        raise FractalError(
            f"passes {passes}, batch size {largest} and seed {seed} asked for: passes are "
            f"1 … {MOST_PASSES}, the batch size is 1 or more, the seed 0 … {LARGEST_SEED}"
        )


def held_out_likelihood(
    model: FractalModel, split: PreparedSplit, settings: EvaluationConfig, progress: Progress
) -> dict[str, float]:
    """`nll_bits_per_dim`, unconditional, and its standard error over the images."""
    found = measure_likelihood(
        model,
        split,
        progress,
        passes=settings.likelihood_passes,
        seed=settings.seed,
        largest=settings.batch_size,
    )
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
    classes, side = model.config.num_classes, model.config.image_size
    labels = torch.arange(classes).repeat_interleave(settings.samples_per_class)
    images = torch.empty(len(labels), 3, side, side, dtype=torch.uint8)
    started, done = time.monotonic(), 0
    seeds = range(settings.seed, settings.seed + len(labels))
    parts = sample_images(model, sampling, labels, seeds, largest=settings.batch_size)
    for part, found in parts:
        images[part.start : part.stop] = found
        done += len(part)
        progress(done)
    return Samples(images, labels, time.monotonic() - started)


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
        real_statistics=reference.statistics,
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
