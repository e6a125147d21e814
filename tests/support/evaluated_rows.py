"""Protocols of evaluated models, and rows of a table of results."""

from __future__ import annotations

from fractal_model.config.sampling import SamplingConfig
from fractal_model.evaluation.protocol import ImageSource, Protocol
from fractal_model.metrics.reference import OWN_IMAGES
from fractal_model.reporting.results_table import Row

SAMPLING = SamplingConfig(guidance=2.5, logit_scale=1.1, iterations=(16, 4))


def protocol(dataset: str = "digits", **changes: object) -> Protocol:
    source = ImageSource(weights="model", sampling=SAMPLING, seed=0, likelihood_passes=2)
    settings = {
        "dataset": dataset,
        "dataset_checksum": "a" * 64,
        "resolution": 8,
        "reference_source": OWN_IMAGES,
        "reference_checksum": "b" * 64,
        "network_checksum": "sha256:0",
        "classes": 10,
        "samples_per_class": 30,
        "full_samples": 300,
        "images": source,
        "kid_subsets": 3,
        "kid_subset_size": 10,
        "fid_resamples": 4,
    }
    return Protocol(**settings | changes)


def imagenet(**changes: object) -> Protocol:
    settings = {
        "resolution": 64,
        "reference_source": "ADM: adm_in64_stats.npz",
        "classes": 1000,
        "samples_per_class": 50,
        "full_samples": 50_000,
    }
    return protocol("imagenet64", **settings | changes)


VALUES = {"nll_bits_per_dim": 0.7425, "nll_bits_per_dim_stderr": 0.0044, "fid": 35.46, "kid": 0.01}
DIGITS = [
    Row("digits", "fractal-digits version 3", VALUES, protocol(), "r3"),
    Row(
        "digits",
        "fractal-digits version 3",
        {"fid_50": 80.0, "fid_50_stderr": 2.0},
        protocol(samples_per_class=5),
        "r2",
    ),
    Row("digits", "fractal-digits version 2", VALUES, protocol(dataset_checksum="c" * 64), "r1"),
    Row("digits", "fractal_digits version 1", VALUES, None, "r0"),
]
