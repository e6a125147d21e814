"""Metrics of a set of samples, in comparison with real images of the data set."""

from dataclasses import dataclass

from torch import Tensor

from fractal_model.config.model import ModelConfig
from fractal_model.data.prepared import PreparedSplit
from fractal_model.evaluation.protocol import Protocol
from fractal_model.evaluation.same_classes import class_mismatch
from fractal_model.evaluation.sample_set import SampleSet, require_protocol
from fractal_model.evaluation.samples import SamplesWithFeatures
from fractal_model.metrics.class_agreement import nearest_neighbour_agreement
from fractal_model.metrics.dinov2 import NO_WEIGHTS
from fractal_model.metrics.distances import frechet_distance
from fractal_model.metrics.image_metrics import MetricResults, image_metrics
from fractal_model.metrics.inception import NO_CLASSIFIER, InceptionExtractor
from fractal_model.metrics.names import CLASS_AGREEMENT, FD_DINOV2, SPEED
from fractal_model.metrics.reference import Reference
from fractal_model.metrics.statistics import FeatureStatistics

AGREEMENT_LARGEST_SIDE = 16
"""Largest side, in pixels, of images whose class agreement is measured. Class agreement compares
pixels, which tell little about the class of a larger image."""


@dataclass(frozen=True)
class References:
    """Real images that samples are compared with: the training split and features of its images."""

    train: PreparedSplit
    inception: Reference
    dinov2: Reference | None
    """DINOv2 features of real images; None if FD-DINOv2 is not computed."""


def sample_metrics(
    samples: SamplesWithFeatures,
    references: References,
    inception: InceptionExtractor,
    protocol: Protocol,
    *,
    model: ModelConfig | None,
) -> MetricResults:
    """Measure FID, KID, Inception Score, precision, recall, FD-DINOv2, class agreement and speed of
    a balanced set of samples. In a preview the names of the metrics contain the number of samples.
    `model` is the configuration of the model that drew the samples, None for images from files.
    FractalError: the samples or the reference do not fit the protocol, or a feature is not
    finite."""
    require_protocol(samples.images, protocol, "the set of samples")
    reference = references.inception
    reference.require(
        dataset_checksum=protocol.dataset_checksum, weights_checksum=inception.weights_checksum
    )
    features = samples.inception
    results = image_metrics(
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
    results |= dinov2_distance(samples.dinov2, references.dinov2)
    results |= class_agreement(samples.images, references.train, model)
    return results.rename(protocol.label) | _speed(samples)


def dinov2_distance(features: Tensor | None, reference: Reference | None) -> MetricResults:
    """Return FD-DINOv2, the Fréchet distance of the samples' DINOv2 `features` (N, D) to the
    reference. Without features or reference the metric is absent, with the reason."""
    if features is None or reference is None:
        return MetricResults({}, {FD_DINOV2: NO_WEIGHTS})
    statistics = FeatureStatistics.from_features(features)
    return MetricResults({FD_DINOV2: frechet_distance(statistics, reference.statistics)}, {})


def _speed(samples: SamplesWithFeatures) -> MetricResults:
    seconds = samples.seconds_per_image
    if seconds is None:
        return MetricResults({}, dict.fromkeys(SPEED, "the images were not sampled here"))
    return MetricResults(dict(zip(SPEED, (seconds, 1 / seconds), strict=True)), {})


def class_agreement(
    samples: SampleSet, train: PreparedSplit, model: ModelConfig | None
) -> MetricResults:
    """Return the share of samples whose class is the most frequent one among the nearest images of
    the split `train`. The metric is absent, with the reason, if `model` has other classes than the
    data set, or if the images are too large to be compared by their pixels."""
    if model is not None and (reason := class_mismatch(model, train.manifest)):
        return MetricResults({}, {CLASS_AGREEMENT: reason})
    if train.manifest.resolution > AGREEMENT_LARGEST_SIDE:
        reason = (
            f"images of {train.manifest.resolution} px are too large to compare by their pixels: "
            f"at most {AGREEMENT_LARGEST_SIDE} px"
        )
        return MetricResults({}, {CLASS_AGREEMENT: reason})
    images = samples.images(range(len(samples.labels)))
    share = nearest_neighbour_agreement(images, samples.labels, *train.load_all())
    return MetricResults({CLASS_AGREEMENT: share}, {})
