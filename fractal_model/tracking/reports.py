"""Logs the report of an evaluation and its figures as artifacts of its MLflow run."""

import tempfile
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from pydantic import ValidationError
from torch import Tensor

from fractal_model.config.model import ModelConfig
from fractal_model.data.prepared import PreparedSplit
from fractal_model.evaluation.held_out_likelihood import HeldOutLikelihood
from fractal_model.evaluation.protocol import Record
from fractal_model.evaluation.same_classes import class_mismatch
from fractal_model.evaluation.samples import SamplesWithFeatures
from fractal_model.metrics.image_metrics import MetricResults
from fractal_model.metrics.names import NLL
from fractal_model.metrics.reference import Reference
from fractal_model.reporting import figures
from fractal_model.reporting.evaluation_page import write_report
from fractal_model.reporting.neighbours import reference_images
from fractal_model.reporting.reference_curve import ReferenceCurve, describe_run
from fractal_model.tracking.runs import log_figure, log_file
from fractal_model.tracking.training_history import curve

REFERENCE_FILE = "reference.json"
"""Artifact of a training run: the curves with which it was compared."""
CURVE_METRICS = ("loss", NLL)
"""Metrics of the training run that the report draws as curves. Missing ones are left out."""


def log_report(
    record: Record,
    results: MetricResults,
    samples: SamplesWithFeatures,
    train: PreparedSplit,
    reference: Reference,
    model: ModelConfig,
    *,
    held_out: HeldOutLikelihood,
    level_bits: dict[str, float],
    held_out_features: Tensor | None = None,
    training_run: str | None = None,
) -> None:
    """Log the page `report.html`, `likelihood.png` and, if there are curves, `curves.png` to the
    active run. `model`: configuration of the model that drew `samples`. `level_bits`: bits per
    dimension by level. `held_out_features`: Inception features (K, D) of validation images.
    `training_run`: id of the run with the curves. FractalError: features are not finite."""
    curves, curve_reference = _read_curves(training_run), _read_reference(training_run)
    log_figure(figures.likelihood_histogram(held_out.bits), "likelihood.png")
    if curves:
        log_figure(figures.training_curves(curves, curve_reference), "curves.png")
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "report.html"
        write_report(
            file,
            title=f"{record.model} on {record.protocol.dataset}",
            record=record.model_dump(mode="json"),
            values=results.values,
            absent=results.absent,
            samples=samples.images,
            class_names=model.class_names or train.class_names,
            class_mismatch=class_mismatch(model, train.manifest),
            features=samples.inception,
            real=reference_images(train, reference),
            held_out_features=held_out_features,
            held_out_bits=held_out.bits,
            level_bits=level_bits,
            curves=curves,
            curve_reference=curve_reference,
        )
        log_file(file)


def log_training_curves(run_id: str, reference: ReferenceCurve | None) -> list[str]:
    """Log the curves of a training, drawn over a reference if there is one, as `curves.png` of the
    active run. Return lines that compare the last epoch with the reference. `run_id`: id of the
    active run."""
    curves = _read_curves(run_id)
    if not curves:
        return []
    log_figure(figures.training_curves(curves, reference), "curves.png")
    if reference is None:
        return []
    mlflow.log_dict(reference.model_dump(mode="json"), REFERENCE_FILE)
    return describe_run(curves, reference)


def _read_reference(run_id: str | None) -> ReferenceCurve | None:
    """Read the reference of a training run; None if it has none or the run was deleted."""
    if run_id is None:
        return None
    try:
        return ReferenceCurve.model_validate(
            mlflow.artifacts.load_dict(f"runs:/{run_id}/{REFERENCE_FILE}")
        )
    except (OSError, MlflowException, ValidationError):
        return None


def _read_curves(run_id: str | None) -> dict[str, figures.Points]:
    return {name: points for name in CURVE_METRICS if (points := curve(run_id, name))}
