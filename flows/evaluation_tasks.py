"""The tasks that measure a model: its run in MLflow, with all numbers and what goes with them.

Decided here: numbers first; a picture, an animation or a report that cannot be made is left out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import mlflow
import torch
from mlflow.exceptions import MlflowException
from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import Tensor

from fractal_model.common.console import progress_bar, say
from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.memory import compute_device
from fractal_model.config.params import Size
from fractal_model.evaluation.inputs import EvaluationInputs
from fractal_model.evaluation.likelihood import HeldOut, held_out_likelihood, likelihood_by_level
from fractal_model.evaluation.protocol import Protocol, Record
from fractal_model.evaluation.sample_metrics import sample_metrics
from fractal_model.evaluation.sample_set import SampleSet
from fractal_model.evaluation.samples import SeenSamples, draw_samples, held_out_features
from fractal_model.generation.animation import growth
from fractal_model.generation.pictures import sample_grid
from fractal_model.metrics.image_metrics import MetricResults
from fractal_model.metrics.inception import load_inception
from fractal_model.model.fractal import FractalModel
from fractal_model.parallel.ray_workers import shared_out
from fractal_model.reporting.report import shown_classes
from fractal_model.tracking import registry, runs
from fractal_model.tracking.reports import log_report

GRID_COLUMNS = 10
PICTURE = "samples.png"


def measured(
    inputs: EvaluationInputs, size: Size, record: Record, model: FractalModel, folder: Path
) -> str:
    """The id of a new run with all numbers, and what goes with them."""
    protocol, manifest = record.protocol, inputs.split("train").manifest
    with runs.evaluation_run(size, manifest, record, inputs.params.paths.outputs) as run_id:
        held_out = measure_likelihood(inputs, size, protocol, model, folder)
        samples = draw(inputs, size, protocol, model, folder)
        found = held_out.results | measure_samples(inputs, protocol, samples)
        runs.log_results(found)
        with spared("picture of the samples"):
            runs.log_picture(first_of_each_class(samples.images, protocol), PICTURE)
        with spared("animation"):
            draw_growth(size, model)
        with spared("report"):
            report(inputs, size, record, model, found, samples, held_out)
    return run_id


@contextmanager
def spared(what: str) -> Iterator[None]:
    """What only shows the numbers must not cost a run that has them."""
    try:
        yield
    except (FractalError, OSError, MlflowException) as error:
        say(f"the {what} is left out: {one_line(error)}")


@task(name="likelihood", cache_policy=NO_CACHE)
def measure_likelihood(
    inputs: EvaluationInputs, size: Size, protocol: Protocol, model: FractalModel, folder: Path
) -> HeldOut:
    """Held-out bits per dimension, unconditional and conditional."""
    split = inputs.split("validation")
    with progress_bar("held-out likelihood, images", 2 * len(split)) as update:
        return held_out_likelihood(
            model,
            split,
            protocol.images,
            folder,
            update,
            largest=size.evaluation.batch_size,
            map_parts=shared_out(size.evaluation.workers, inputs.files),
        )


@task(name="sample", cache_policy=NO_CACHE)
def draw(
    inputs: EvaluationInputs, size: Size, protocol: Protocol, model: FractalModel, folder: Path
) -> SeenSamples:
    """A balanced set, and its features."""
    with progress_bar("sampling and features, images", protocol.samples) as update:
        return draw_samples(
            model,
            protocol,
            protocol.images,
            inputs.networks,
            folder / "samples",
            update,
            largest=size.evaluation.batch_size,
            map_parts=shared_out(size.evaluation.workers, inputs.files),
        )


@task(name="sample-metrics", cache_policy=NO_CACHE)
def measure_samples(
    inputs: EvaluationInputs, protocol: Protocol, samples: SeenSamples
) -> MetricResults:
    """FID and its relatives against the references of the data set."""
    extracts = inputs.networks.dinov2 is not None  # Inception's are there
    with progress_bar("DINOv2's reference, images", None) if extracts else nullcontext() as update:
        references = inputs.references(update)
    inception = load_inception(inputs.params.metrics.inception_weights)
    return sample_metrics(samples, references, inception, protocol)


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
    inputs: EvaluationInputs,
    size: Size,
    record: Record,
    model: FractalModel,
    results: MetricResults,
    samples: SeenSamples,
    held_out: HeldOut,
) -> None:
    """`report.html` and its figures, as artifacts."""
    source = record.protocol.images
    references = inputs.references()
    inception = load_inception(inputs.params.metrics.inception_weights, compute_device())
    log_report(
        record,
        results,
        samples,
        references.train,
        references.inception,
        held_out=held_out,
        held_out_features=held_out_features(inputs.split("validation"), inception),
        level_bits=likelihood_by_level(
            model,
            inputs.split("validation"),
            passes=source.likelihood_passes,
            seed=source.seed,
            map_parts=shared_out(size.evaluation.workers, inputs.files),
        ),
        training_run=registry.training_run(size.name, record.version),
    )
