"""One training run as data: the job that its machines receive, and the reports that they send."""

from pathlib import Path

from pydantic import Field, TypeAdapter

from fractal_model.common.strict import StrictModel
from fractal_model.config.evaluation import EvaluationConfig
from fractal_model.config.model import ModelConfig
from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.serving import ServingConfig
from fractal_model.config.training import TrainingConfig
from fractal_model.config.weights import EMA, MODEL, Weights
from fractal_model.metrics.names import NLL, error_name
from fractal_model.reporting.reference_curve import ReferenceCurve

START_FOLDER = "start"
"""Name of the folder, in a run's folder, with the weights that training starts from."""


class Report(StrictModel):
    """Metrics of a run at one step. Rates and means cover the time since the last report."""

    position: int
    """Number of images seen, over all workers and epochs."""
    step: int
    epoch: float
    """Number of images seen, divided by the number of training images."""
    images_per_second: float
    data_wait_share: float
    """Share of the time, 0 … 1, that the worker with the longest wait spent waiting for data."""
    workers: int
    accumulation: int
    """Number of parts into which each worker splits its share of a batch, to save memory."""
    skipped_batches: int
    """Number of batches left out since the run began, because a loss or gradient was not finite."""
    loss: float | None = None
    """Mean training loss in nats; None if every batch since the last report was skipped."""
    gradient_norm: float | None = None
    """Norm of the last step's gradient before clipping; None if every batch since the last report
    was skipped."""
    learning_rate: float | None = None
    tflops: float | None = None
    """Operations per second and worker in 10¹²: those of the model's forward and backward pass,
    without what activation checkpointing computes again."""
    mfu: float | None = None
    """Model FLOPs utilisation, 0 … 1: `tflops` divided by the device's peak (see
    `training.efficiency`), as the mean over all workers."""
    gpu_memory_gb: float | None = None
    """Largest memory in GB that torch has allocated on the GPU of a worker since the last report;
    None on a CPU."""
    eta_hours: float | None = None
    """Hours until the recipe ends, at the speed since the last report; None if it is 0."""
    loss_over_reference: float | None = None
    """Mean loss of the last epoch minus the reference's at this epoch, in nats; None without a
    reference, and in the first epoch. The driver sets it."""
    note: str | None = None
    """Text for people about events since the last report, such as a skipped batch."""


class Stopped(StrictModel):
    """Last report of a run that ends because of an error that a restart would only repeat."""

    stopped: str
    """Reason why the run ends, one line."""


class ValidationPoint(StrictModel):
    """Quality of the weights of one checkpoint, measured on held-out images."""

    position: int
    """Number of images seen, over all workers and epochs."""
    step: int
    epoch: float
    metrics: dict[str, float] = Field(default_factory=dict)
    """Held-out metrics by name. The names for moving averages end as `TrainingJob.suffix` says."""
    grids: tuple[str, ...] = ()
    """File names of the sample grids, in the folder of the point."""
    failure: str | None = None
    """Reason why the measurement, or the copy of the best checkpoint, failed: one line. None if
    both succeeded."""
    seconds: float = 0.0
    """Duration of the measurement."""


def describe_point(point: ValidationPoint, score: str) -> str:
    """Describe a point on one line, such as `epoch 3.00: 0.9120 ± 0.0050 bits/dim held out`.
    `score` is the name of the metric to show."""
    if score not in point.metrics:
        return f"epoch {point.epoch:.2f} was not validated: {point.failure}"
    error = point.metrics.get(error_name(score))
    spread = "" if error is None else f" ± {error:.4f}"
    problem = "" if point.failure is None else f"; {point.failure}"
    return f"epoch {point.epoch:.2f}: {point.metrics[score]:.4f}{spread} bits/dim held out{problem}"


def compare_point(point: ValidationPoint, reference: ReferenceCurve | None, score: str) -> str:
    """Compare the held-out likelihood of the trained weights with a reference, as a text to append
    to `describe_point`, such as `; 0.0040 above the reference curve, normal (±0.0102)`; "" if
    either is unknown. If `score` is of other weights, the text names the trained ones."""
    if reference is None or NLL not in point.metrics:
        return ""
    comparison = reference.compare(NLL, point.epoch, point.metrics[NLL])
    if comparison is None:
        return ""
    subject = "" if score == NLL else f"the trained weights, {point.metrics[NLL]:.4f}, are "
    return f"; {subject}{comparison}"


REPORT_ADAPTER: TypeAdapter[Report | Stopped] = TypeAdapter(Report | Stopped)
"""Reads a Report or a Stopped from a dict or from JSON."""


class PreviewInputs(StrictModel):
    """What a preview FID during training needs beside the model and the data set."""

    evaluation: EvaluationConfig
    """Settings of the size's evaluation, of which the preview takes the number of samples, the
    largest batch and the seed."""
    reference: Path
    """File with the Inception features of the training images."""
    inception_weights: str
    """Inception weights: `auto`, `download` or a path."""


class TrainingJob(StrictModel):
    """Description of one training, sent as JSON from the flow to the driver and to the workers."""

    size: str
    model: ModelConfig
    recipe: TrainingConfig
    data: Path | str
    """Folder or address (s3://…) of the prepared data set."""
    storage: str
    """Folder or address (s3://…) that contains the folders of all runs of this size."""
    local: Path
    """This run's folder on the driver's machine, with reports and metrics that are not sent yet."""
    fingerprint: str
    tracking_uri: str
    run_id: str
    """Id of the MLflow run that receives the metrics."""
    images: int
    """Number of training images."""
    gflop_per_image: float | None = None
    """Operations of the forward and backward pass of one image in 10⁹, without what activation
    checkpointing computes again; None: the run's efficiency is not reported."""
    sampling: SamplingConfig
    """Sampling settings of the grids that validation draws."""
    scored_weights: Weights = MODEL
    """Weights that are served. Their held-out likelihood decides which checkpoint is the best."""
    preview: PreviewInputs | None = None
    """What a preview FID needs during training; None if the recipe has none."""
    reference: ReferenceCurve | None = None
    """Curves of an earlier training with which this run is compared; None if there are none."""

    @property
    def serving(self) -> ServingConfig:
        """Weights and sampling settings that are written into the run's checkpoints."""
        return ServingConfig(weights=self.scored_weights, sampling=self.sampling)

    @property
    def score(self) -> str:
        """Name of the held-out metric by which checkpoints are compared; lower is better."""
        return f"{NLL}{self.suffix(self.scored_weights)}"

    def suffix(self, weights: str) -> str:
        """Last part of the names of metrics and grids of these weights: "" for the trained weights,
        `_ema` for the only moving average, and `_ema_0.999` for one of several."""
        if weights == MODEL:
            return ""
        if len(self.recipe.ema_decays) <= 1:  # As in runs from before there could be several.
            return f"_{EMA}"
        return f"_{weights.replace('-', '_', 1)}"

    def place(self, position: int, step: int) -> ValidationPoint:
        """A validation point without metrics, after `position` images and `step` steps."""
        return ValidationPoint(position=position, step=step, epoch=position / self.images)

    @property
    def start(self) -> str | None:
        """Folder or address of the weights that training starts from, a checkpoint in the run's
        folder; None: random weights."""
        folder = f"{self.storage}/{self.name}/{START_FOLDER}"
        return None if self.recipe.start_from is None else folder

    @property
    def name(self) -> str:
        """Name of the run's folder: the first 16 digits of the fingerprint."""
        return self.fingerprint[:16]
