"""Measure a model: held-out likelihood, samples, and what the samples are like.

Knows no registry, no tracker and no cluster: models and data in, numbers and images out; who runs
the parts of the work is given as a `MapParts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fractal_model.common.errors import FractalError
from fractal_model.data.loader import read_batch
from fractal_model.data.prepared import PreparedSplit
from fractal_model.evaluation_samples import Progress, SeenSamples
from fractal_model.kept_parts import KeptParts
from fractal_model.metrics.agreement import nearest_neighbour_agreement
from fractal_model.metrics.dinov2 import NO_WEIGHTS
from fractal_model.metrics.distances import frechet_distance
from fractal_model.metrics.evaluate import MetricResults, image_metrics
from fractal_model.metrics.inception import NO_CLASSIFIER, InceptionFeatures
from fractal_model.metrics.protocol import STANDARD_ERROR, ImageSource, Protocol
from fractal_model.metrics.reference import Reference
from fractal_model.metrics.sample_set import SampleSet, require_protocol
from fractal_model.metrics.statistics import FeatureStatistics
from fractal_model.model.fractal import NO_CLASS, FractalModel
from fractal_model.model.likelihood import Likelihood, is_exact, mask_seeds, pass_bits
from fractal_model.parts import LARGEST_PART, MapParts, Work, in_this_process
from fractal_model.randomness import LARGEST_SEED

UNCONDITIONAL, CONDITIONAL = "nll_bits_per_dim", "nll_conditional_bits_per_dim"
AGREEMENT_LARGEST_SIDE = 16
MOST_PASSES = 10_000


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
        raise OtherClassesError(
            f"the {classes} classes of the data set {found.dataset} are not the "
            f"{config.num_classes} that the model knows: measure it on the classes that it was "
            f"made for, or without --conditional"
        )


class OtherClassesError(FractalError):
    """The data set's classes are not those that the model was made for."""


def _require_legal(*, passes: int, seed: int, largest: int) -> None:
    if not 1 <= passes <= MOST_PASSES or largest < 1 or not 0 <= seed <= LARGEST_SEED:
        raise FractalError(
            f"passes {passes}, batch size {largest} and seed {seed} asked for: passes are "
            f"1 … {MOST_PASSES}, the batch size is 1 or more, the seed 0 … {LARGEST_SEED}"
        )


@dataclass(frozen=True)
class HeldOut:
    """How well a model predicts the validation images."""

    results: MetricResults
    bits: Tensor
    """(N,) float64: unconditional bits per dimension of each image."""


def held_out_likelihood(
    model: FractalModel,
    split: PreparedSplit,
    source: ImageSource,
    folder: Path,
    progress: Progress,
    *,
    largest: int,
    map_parts: MapParts = in_this_process,
) -> HeldOut:
    """`nll_bits_per_dim`, unconditional as published, and `nll_conditional_bits_per_dim`, each with
    its standard error over the images. What an equal call has left in `folder` is kept; `progress`
    counts each image twice."""

    def measured(conditional: bool) -> Likelihood:
        name = CONDITIONAL if conditional else UNCONDITIONAL
        return measure_likelihood(
            model,
            split,
            lambda done: progress(done + conditional * len(split)),
            passes=source.likelihood_passes,
            seed=source.seed,
            conditional=conditional,
            largest=largest,
            map_parts=KeptParts(folder / name, map_parts),
        )

    unconditional = measured(False)
    results = _likelihood_results(UNCONDITIONAL, unconditional)
    try:
        results |= _likelihood_results(CONDITIONAL, measured(True))
    except OtherClassesError as error:
        names = (CONDITIONAL, f"{CONDITIONAL}{STANDARD_ERROR}")
        results |= MetricResults({}, dict.fromkeys(names, str(error)))
    return HeldOut(results, unconditional.per_image)


def _likelihood_results(name: str, found: Likelihood) -> MetricResults:
    bad = int((~found.per_image.isfinite()).sum())
    if bad:
        raise FractalError(
            f"{name} is not finite for {bad:,} of {len(found.per_image):,} images: the weights are "
            f"of a training that failed, evaluate an earlier checkpoint"
        )
    if len(found.per_image) > 1:
        error = {f"{name}{STANDARD_ERROR}": found.standard_error}
        return MetricResults({name: found.mean} | error, {})
    reason = "a single image has no spread to tell an error from"
    return MetricResults({name: found.mean}, {f"{name}{STANDARD_ERROR}": reason})


@dataclass(frozen=True)
class References:
    """Real images that samples are compared with."""

    train: PreparedSplit
    inception: Reference
    dinov2: Reference | None
    """None where FD-DINOv2 is not computed."""


def sample_metrics(
    samples: SeenSamples, references: References, inception: InceptionFeatures, protocol: Protocol
) -> MetricResults:
    """Everything that a balanced set of samples tells, under the names that the protocol gives:
    FID, KID, Inception Score, precision, recall, FD-DINOv2, class agreement, and speed.

    FractalError when the set or the reference is not the protocol's, or a feature is not finite.
    """
    require_protocol(samples.images, protocol, "the set of samples")
    reference = references.inception
    reference.require(
        dataset_checksum=protocol.dataset_checksum, weights_checksum=inception.weights_checksum
    )
    features = samples.inception
    found = image_metrics(
        features,
        reference.features,
        real_statistics=reference.statistics,
        fid_resamples=protocol.fid_resamples,
        kid_subsets=protocol.kid_subsets,
        kid_subset_size=protocol.kid_subset_size,
        neighbours=protocol.neighbours,
        logits=inception.logits_from_features(features) if inception.has_classifier else None,
        reason_no_logits=NO_CLASSIFIER,
    )
    found |= dinov2_distance(samples.dinov2, references.dinov2)
    found |= class_agreement(samples.images, references.train)
    return found.renamed(protocol.label) | _speed(samples)


def dinov2_distance(features: Tensor | None, reference: Reference | None) -> MetricResults:
    """`fd_dinov2` of (N, D) features; absent where there are no weights."""
    if features is None or reference is None:
        return MetricResults({}, {"fd_dinov2": NO_WEIGHTS})
    found = FeatureStatistics.from_features(features)
    return MetricResults({"fd_dinov2": frechet_distance(found, reference.statistics)}, {})


def _speed(samples: SeenSamples) -> MetricResults:
    seconds, names = samples.seconds_per_image, ("seconds_per_image", "images_per_second")
    if seconds is None:
        return MetricResults({}, dict.fromkeys(names, "the images were not sampled here"))
    return MetricResults(dict(zip(names, (seconds, 1 / seconds), strict=True)), {})


def class_agreement(samples: SampleSet, train: PreparedSplit) -> MetricResults:
    """`class_agreement`, for images small enough that their pixels are comparable."""
    if train.manifest.resolution > AGREEMENT_LARGEST_SIDE:
        reason = (
            f"neighbours in pixels say nothing of images over {AGREEMENT_LARGEST_SIDE} px, these "
            f"have {train.manifest.resolution}"
        )
        return MetricResults({}, {"class_agreement": reason})
    images = samples.images(range(len(samples.labels)))
    share = nearest_neighbour_agreement(images, samples.labels, *train.load_all())
    return MetricResults({"class_agreement": share}, {})
