"""Logs the report of an evaluation and its figures as artifacts of its MLflow run."""

import tempfile
from pathlib import Path

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
from fractal_model.tracking.runs import curve, log_figure, log_file

CURVE_METRICS = ("loss", "validation_loss", NLL)
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
    curves = {n: points for n in CURVE_METRICS if (points := curve(training_run, n))}
    log_figure(figures.likelihood_histogram(held_out.bits), "likelihood.png")
    if curves:
        log_figure(figures.training_curves(curves), "curves.png")
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
        )
        log_file(file)
