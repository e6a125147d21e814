"""One training run as data: the job that its machines are given, and the reports that they send."""

from pathlib import Path

from pydantic import TypeAdapter

from fractal_model.common.strict import StrictModel
from fractal_model.config.model import ModelConfig
from fractal_model.config.training import TrainingConfig

Curve = tuple[tuple[float, float], ...]
"""Pairs of epoch and loss, by epoch."""


class Report(StrictModel):
    """Metrics of a run at one moment; means cover the time since the report before."""

    position: int
    """Images seen, over all workers and epochs."""
    step: int
    epoch: float
    images_per_second: float
    data_wait_share: float
    """Share of the time in which the worker that waits longest waits for data."""
    workers: int
    accumulation: int
    skipped_batches: int
    loss: float | None = None
    """None where every batch since the report before was skipped, like the two that follow."""
    gradient_norm: float | None = None
    learning_rate: float | None = None
    note: str | None = None
    """What happened since the report before that a person should read."""


class Stopped(StrictModel):
    """The last report of a run that ends itself before its time."""

    stopped: str
    """The reason."""


REPORTED: TypeAdapter[Report | Stopped] = TypeAdapter(Report | Stopped)
"""Reads either of them from the dict or the JSON that Ray Train and files hold."""


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
