"""A protocol with its settings, manifest and reference."""

from __future__ import annotations

import numpy as np
import torch

from fractal_model.config.evaluation import EvaluationConfig
from fractal_model.config.sampling import SamplingConfig
from fractal_model.data.manifest import Manifest
from fractal_model.evaluation.protocol import make_protocol
from fractal_model.metrics.reference import OWN_IMAGES, Reference
from fractal_model.metrics.statistics import FeatureStatistics

SETTINGS = EvaluationConfig(
    weights="model",
    likelihood_passes=2,
    samples_per_class=30,
    preview_per_class=5,
    batch_size=8,
    kid_subset_size=10,
    kid_subsets=3,
    fid_resamples=4,
    seed=0,
)


def manifest(dataset="noise", classes=10, checksum="a" * 64) -> Manifest:
    split = {
        "images": classes,
        "images_per_class": [1] * classes,
        "checksum": checksum,
        "shards": [{"file": "train/a.arrow", "images": classes, "bytes": 1}],
    }
    return Manifest(
        dataset=dataset,
        source="",
        preprocessing="none",
        resolution=8,
        class_names=[f"kind {i}" for i in range(classes)],
        splits={"train": split},
    )


def reference(of: Manifest, source=OWN_IMAGES) -> Reference:
    statistics = FeatureStatistics(np.zeros(3), np.eye(3), 5)
    return Reference(statistics, torch.zeros(5, 3), source, of.dataset, of.checksum, "sha1:1")


def protocol(settings=SETTINGS, of=None, source=OWN_IMAGES, **options):
    of = of or manifest()
    options = {"sampling": SamplingConfig(), "inception_checksum": "sha1:1"} | options
    return make_protocol(settings, of, reference(of, source), **options)
