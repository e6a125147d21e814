"""Prefect tasks that evaluate a model and log numbers, pictures and the report to its MLflow run.

Decided here: the numbers come first. A picture, an animation or a report that fails is left out.
"""

import tempfile
from pathlib import Path

import pandas as pd
from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from fractal_model.common.devices import compute_device
from fractal_model.common.safe_text import safe_text
from fractal_model.config.params import Size
from fractal_model.evaluation.held_out_likelihood import HeldOutLikelihood
from fractal_model.evaluation.measure_likelihood import likelihood_by_level
from fractal_model.evaluation.prepare_evaluation import PreparedEvaluation
from fractal_model.evaluation.samples import SamplesWithFeatures, held_out_features
from fractal_model.generation.animation import write_growth_animation
from fractal_model.metrics.image_metrics import MetricResults
from fractal_model.metrics.inception import load_inception
from fractal_model.model.fractal import FractalModel
from fractal_model.parallel.split import split_over_workers
from fractal_model.reporting.evaluation_page import class_overview
from fractal_model.tracking import cross_links, registration, registry, runs
from fractal_model.tracking.reports import log_report

measure_likelihood = task(name="likelihood", cache_policy=NO_CACHE)(
    PreparedEvaluation.measure_likelihood
)
draw_samples = task(name="sample", cache_policy=NO_CACHE)(PreparedEvaluation.draw_samples)
measure_samples = task(name="sample-metrics", cache_policy=NO_CACHE)(
    PreparedEvaluation.measure_samples
)


def evaluate_model(evaluation: PreparedEvaluation) -> str:
    """Evaluate a model; log numbers, pictures and the report to a new MLflow run, and return its
    id."""
    inputs, size = evaluation.inputs, evaluation.size
    outputs = inputs.params.paths.outputs
    with runs.evaluation_run(size, inputs.manifest, evaluation.record, outputs) as run_id:
        held_out = measure_likelihood(evaluation)
        samples = draw_samples(evaluation)
        results = held_out.results | measure_samples(evaluation, samples)
        version = evaluation.record.version
        model_id = registration.ranked_model_id(size.name, version, size.serving)
        runs.log_results(results, inputs.manifest, model_id)
        if version:
            link_pages(evaluation, version, run_id, is_served_so=model_id is not None)
        with runs.optional_step("picture of the samples"):
            runs.log_picture(class_overview(samples.images), runs.SAMPLES_PICTURE)
        with runs.optional_step("animation"):
            draw_growth(size, evaluation.model)
        with runs.optional_step("report"):
            make_report(evaluation, results, samples, held_out)
    return run_id


def link_pages(
    evaluation: PreparedEvaluation, version: str, run_id: str, *, is_served_so: bool
) -> None:
    """Link the evaluation `run_id` with its training on MLflow's pages. If the version is served
    with the evaluated settings, write the metrics into its description."""
    size = evaluation.size.name
    with runs.optional_step("link between training and evaluation"):
        cross_links.link_evaluation(size, version, run_id)
        if is_served_so:
            is_preview = evaluation.record.protocol.is_preview
            cross_links.show_numbers(size, version, run_id, is_preview=is_preview)


def publish_table(key: str, table: pd.DataFrame, description: str | None = None) -> None:
    """Show a table on Prefect's pages as the artifact `key`. A missing value becomes an empty
    cell."""
    cells = table.astype(object).where(table.notna(), "")
    rows = cells.map(lambda cell: safe_text(cell) if isinstance(cell, str) else cell).to_dict(
        "records"
    )
    create_table_artifact(key=key, table=rows, description=description)


@task(name="growth", cache_policy=NO_CACHE)
def draw_growth(size: Size, model: FractalModel) -> None:
    """Log an animation and a still picture that show how a few images are generated."""
    with tempfile.TemporaryDirectory() as scratch:
        for file in write_growth_animation(model, size.sampling, size.evaluation, Path(scratch)):
            runs.log_file(file)


@task(name="report", cache_policy=NO_CACHE)
def make_report(
    evaluation: PreparedEvaluation,
    results: MetricResults,
    samples: SamplesWithFeatures,
    held_out: HeldOutLikelihood,
) -> None:
    """Make the report; log `report.html` and its figures to the active MLflow run."""
    inputs, record, size = evaluation.inputs, evaluation.record, evaluation.size
    references = inputs.references()
    inception = load_inception(inputs.params.metrics.inception_weights, compute_device())
    validation = inputs.split("validation")
    log_report(
        record,
        results,
        samples,
        references.train,
        references.inception,
        evaluation.model.config,
        held_out=held_out,
        held_out_features=held_out_features(validation, inception),
        level_bits=likelihood_by_level(
            evaluation.model,
            validation,
            passes=size.evaluation.likelihood_passes,
            seed=evaluation.source.seed,
            map_parts=split_over_workers(size.evaluation.workers, inputs.files),
        ),
        training_run=registry.training_run_id(size.name, record.version),
    )
