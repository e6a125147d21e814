"""One training run as data: the job that its machines receive, and the reports that they send."""

from pathlib import Path
from typing import Literal

from pydantic import Field, TypeAdapter

from fractal_model.common.strict import StrictModel
from fractal_model.config.model import ModelConfig
from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.training import TrainingConfig
from fractal_model.metrics.names import NLL, error_name

EMA_SUFFIX = "_ema"
"""End of the names of a moving average's metrics and files."""
Curve = tuple[tuple[float, float], ...]
"""Pairs (epoch, loss), sorted by epoch."""


class Report(StrictModel):
    """Metrics of a run at one moment. Means are taken over the time since the last report."""

    position: int
    """Number of images seen, over all workers and epochs."""
    step: int
    epoch: float
    images_per_second: float
    data_wait_share: float
    """Share of the time, 0 … 1, that the worker with the longest wait spent waiting for data."""
    workers: int
    accumulation: int
    skipped_batches: int
    loss: float | None = None
    """Mean training loss in nats. It, the norm and the learning rate are None if every batch since
    the last report was skipped."""
    gradient_norm: float | None = None
    learning_rate: float | None = None
    note: str | None = None
    """Text for people about events since the last report, such as a skipped batch."""


class Stopped(StrictModel):
    """Last report of a run that ends itself before the end of its recipe."""

    stopped: str
    """Reason for the end, one line."""


class ValidationPoint(StrictModel):
    """Quality of the weights of one checkpoint, measured on held-out images."""

    position: int
    """Number of images seen, over all workers and epochs."""
    step: int
    epoch: float
    metrics: dict[str, float] = Field(default_factory=dict)
    """Held-out metrics by name. The moving average's end with EMA_SUFFIX; empty after a
    failure."""
    grids: tuple[str, ...] = ()
    """File names of the sample grids, in the folder of the point."""
    failure: str | None = None
    """Why something was not measured or not kept, one line."""
    seconds: float = 0.0


def describe_point(point: ValidationPoint, score: str) -> str:
    """One line about a point: `epoch 3.00: 0.912 ± 0.005 bits/dim held out`."""
    if score not in point.metrics:
        return f"epoch {point.epoch:.2f} was not validated: {point.failure}"
    error = point.metrics.get(error_name(score))
    spread = "" if error is None else f" ± {error:.4f}"
    problem = "" if point.failure is None else f"; {point.failure}"
    return f"epoch {point.epoch:.2f}: {point.metrics[score]:.4f}{spread} bits/dim held out{problem}"


REPORT_ADAPTER: TypeAdapter[Report | Stopped] = TypeAdapter(Report | Stopped)
"""Reads a Report or a Stopped from a dict or from JSON."""


class TrainingJob(StrictModel):
    """Description of one training, sent as JSON from the flow to the driver and to the workers."""

    size: str
    model: ModelConfig
    recipe: TrainingConfig
    data: Path | str
    storage: str
    """Folder or address (s3://…) of all runs of this size; this run's folder in it is `name`."""
    local: Path
    """Folder of this run on the driver's machine, with unread reports and the spool of metrics."""
    fingerprint: str
    tracking_uri: str
    run_id: str
    """Id of the MLflow run."""
    sampling: SamplingConfig
    """Settings of the sample grids."""
    scored_weights: Literal["model", "ema"] = "model"
    """Weights by whose held-out likelihood the best checkpoint is chosen: those that are served."""
    reference: Curve = ()
    """Training loss of the champion, which warnings compare this run's loss with."""

    @property
    def score(self) -> str:
        """Name of the held-out metric by which checkpoints are compared; lower is better."""
        return f"{NLL}{EMA_SUFFIX}" if self.scored_weights == "ema" else NLL

    @property
    def name(self) -> str:
        """Name of the run's folder: the first 16 digits of the fingerprint."""
        return self.fingerprint[:16]
