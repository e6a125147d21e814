"""A quick network that replaces Inception in tests of other code."""

from __future__ import annotations

import pytest
from torch import Tensor

LOADED_BY = (
    "fractal_model.metrics.inception",
    "fractal_model.metrics.dataset_reference",
    "fractal_model.evaluation.prepare_evaluation",
    "fractal_model.evaluation.samples",
    "fractal_model.evaluation.sweep_previews",
    "flows.evaluation_tasks",
)


class Pixels:
    """Maps images (N, 3, S, S) to their pixels, repeated to the width of Inception's features."""

    weights_source, weights_checksum, has_classifier = "pixels", "sha256:0", False
    FEATURES_VERSION = 1

    def __call__(self, images: Tensor) -> Tensor:
        values = images.flatten(1).float()
        return values.repeat(1, -(-2048 // values.shape[1]))[:, :2048]


def use_pixels_as_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every module that loads Inception get `Pixels` instead."""
    for module in LOADED_BY:
        monkeypatch.setattr(f"{module}.load_inception", lambda *arguments: Pixels())
    monkeypatch.setattr(
        "fractal_model.evaluation.inputs.inception_checksum",
        lambda weights: Pixels.weights_checksum,
    )
