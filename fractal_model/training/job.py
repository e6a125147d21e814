"""One training run as data: all that the machines need to know, and where its files are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fractal_model.common.strict import StrictModel
from fractal_model.config.model import ModelConfig
from fractal_model.config.training import TrainingConfig

Report = dict[str, Any]
"""Metrics of one moment: position, step, epoch, loss, learning_rate, gradient_norm,
images_per_second, data_wait_share, workers, accumulation, skipped_batches. The first report after
something that a person should read has it as `note`. A run that ends itself before its time
reports why, as `stopped` alone."""
Curve = tuple[tuple[float, float], ...]
"""Pairs of epoch and loss, by epoch."""


class TrainingJob(StrictModel):
    """Travels as JSON, from the flow to the driver and from there to the workers."""

    size: str
    model: ModelConfig
    recipe: TrainingConfig
    data: Path | str
    storage: str
    """Folder or address (s3://…) of this size's runs; the run's own is named by the
    fingerprint."""
    local: Path
    """Folder of this run on the driver's machine: reports on their way, its spool of metrics."""
    fingerprint: str
    tracking_uri: str
    run_id: str
    """Of the MLflow run."""
    reference: Curve = ()
    """The champion's loss, to tell early that this run goes wrong."""

    @property
    def name(self) -> str:
        return self.fingerprint[:16]
