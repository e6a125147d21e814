"""The tasks that measure a model: its run in MLflow, with all numbers and what goes with them.

Decided here: numbers first; a picture, an animation or a report that cannot be made is left out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import torch
from mlflow.exceptions import MlflowException
from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import Tensor

from fractal_model.common.console import say
from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.memory import compute_device
from fractal_model.config.params import Size
from fractal_model.evaluation.held_out_likelihood import HeldOut, likelihood_by_level
from fractal_model.evaluation.prepare_evaluation import PreparedEvaluation
from fractal_model.evaluation.protocol import Protocol
from fractal_model.evaluation.sample_set import SampleSet
from fractal_model.evaluation.samples import SeenSamples, held_out_features
from fractal_model.generation.animation import growth
from fractal_model.generation.pictures import sample_grid
from fractal_model.metrics.image_metrics import MetricResults
from fractal_model.metrics.inception import load_inception
from fractal_model.model.fractal import FractalModel
from fractal_model.parallel.ray_workers import split_over_workers
from fractal_model.reporting.evaluation_page import shown_classes
from fractal_model.tracking import registry, runs
from fractal_model.tracking.reports import log_report

GRID_COLUMNS = 10
PICTURE = "samples.png"


def evaluate_model(evaluation: PreparedEvaluation) -> str:
    """The id of a new run with all numbers, and what goes with them."""
    inputs, size, protocol = evaluation.inputs, evaluation.size, evaluation.record.protocol
    manifest, outputs = inputs.split("train").manifest, inputs.params.paths.outputs
    with runs.evaluation_run(size, manifest, evaluation.record, outputs) as run_id:
        held_out = measure_likelihood(evaluation)
        samples = draw_samples(evaluation)
        results = held_out.results | measure_samples(evaluation, samples)
        runs.log_results(results)
        with spared("picture of the samples"):
            runs.log_picture(first_of_each_class(samples.images, protocol), PICTURE)
        with spared("animation"):
            draw_growth(size, evaluation.model)
        with spared("report"):
            report(evaluation, results, samples, held_out)
    return run_id


@contextmanager
def spared(what: str) -> Iterator[None]:
    """What only shows the numbers must not cost a run that has them."""
    try:
        yield
    except (FractalError, OSError, MlflowException) as error:
        say(f"the {what} is left out: {one_line(error)}")


@task(name="likelihood", cache_policy=NO_CACHE)
def measure_likelihood(evaluation: PreparedEvaluation) -> HeldOut:
    """Held-out bits per dimension, unconditional and conditional."""
    return evaluation.measure_likelihood()


@task(name="sample", cache_policy=NO_CACHE)
def draw_samples(evaluation: PreparedEvaluation) -> SeenSamples:
    """A balanced set of samples, and their features."""
    return evaluation.draw_samples()


@task(name="sample-metrics", cache_policy=NO_CACHE)
def measure_samples(evaluation: PreparedEvaluation, samples: SeenSamples) -> MetricResults:
    """FID and its relatives against the reference of the data set."""
    return evaluation.measure_samples(samples)


def first_of_each_class(images: SampleSet, protocol: Protocol) -> Tensor:
    """A picture with a row a class, for a few classes where there are many."""
    shown = min(GRID_COLUMNS, protocol.samples_per_class)
    classes = shown_classes(images.labels)
    numbers = torch.arange(protocol.samples).view(protocol.classes, -1)[classes, :shown].flatten()
    return sample_grid(images.images(numbers.tolist()), images.labels[numbers], per_class=shown)


@task(name="growth", cache_policy=NO_CACHE)
def draw_growth(size: Size, model: FractalModel) -> None:
    """The generation of a few images, moving and still, as artifacts."""
    with tempfile.TemporaryDirectory() as scratch:
        for file in growth(model, size.sampling, size.evaluation, Path(scratch)):
            mlflow.log_artifact(str(file))


@task(name="report", cache_policy=NO_CACHE)
def report(
    evaluation: PreparedEvaluation, results: MetricResults, samples: SeenSamples, held_out: HeldOut
) -> None:
    """`report.html` and its figures, as artifacts."""
    inputs, record, size = evaluation.inputs, evaluation.record, evaluation.size
    source, references = record.protocol.images, inputs.references()
    inception = load_inception(inputs.params.metrics.inception_weights, compute_device())
    validation = inputs.split("validation")
    log_report(
        record,
        results,
        samples,
        references.train,
        references.inception,
        held_out=held_out,
        held_out_features=held_out_features(validation, inception),
        level_bits=likelihood_by_level(
            evaluation.model,
            validation,
            passes=source.likelihood_passes,
            seed=source.seed,
            map_parts=split_over_workers(size.evaluation.workers, inputs.files),
        ),
        training_run=registry.training_run(size.name, record.version),
    )
