"""Measures the weights of one step on held-out images, in one process or on all ranks together.

Decided here: the likelihoods of all sets of weights come before the grids, those of the scored
weights first, and the preview comes last, so that what takes long costs no held-out number. If
measuring fails, the point has the reason and what was measured before.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fractal_model.common.errors import FractalError, one_line
from fractal_model.data.holdout import open_held_out_images
from fractal_model.data.prepared import PreparedSplit
from fractal_model.evaluation.model_quality import draw_grid, measure_held_out
from fractal_model.generation.pictures import png_bytes
from fractal_model.metrics.names import NLL, error_name
from fractal_model.model.fractal import FractalModel
from fractal_model.parallel.parts import MapParts, map_in_this_process
from fractal_model.training.job import TrainingJob, ValidationPoint

Models = Mapping[str, Callable[[], FractalModel]]
"""Functions that build the models to measure, by the name of the weights, such as `ema-0.999`."""
Preview = Callable[[FractalModel], dict[str, float]]
"""Function that returns the metrics of a preview of a model."""


@dataclass(frozen=True)
class Processes:
    """The processes that measure together: this one alone, or all ranks of a training."""

    run: Callable[[Callable[[], Any]], Any] = lambda function: function()
    """Calls a function and returns its value; raises on every process if it fails on one."""
    map_parts: MapParts = map_in_this_process
    """Divides the images over the processes."""


def measure(
    job: TrainingJob,
    models: Models,
    place: ValidationPoint,
    *,
    processes: Processes | None = None,
    with_grids: bool = True,
    preview: Preview | None = None,
) -> tuple[ValidationPoint, dict[str, bytes]]:
    """Return the validation point of the weights in `models`, and their sample grids as PNG by file
    name. `place` has the position of the weights and no metrics. `preview` is called with the
    weights that the job scores. No error is raised: the point has the reason of a failure."""
    began = time.monotonic()
    metrics: dict[str, float] = {}
    grids: dict[str, bytes] = {}
    failure = None
    processes, scored = processes or Processes(), job.suffix(job.scored_weights)
    models = dict(sorted(models.items(), key=lambda item: job.suffix(item[0]) != scored))
    try:
        held_out = processes.run(lambda: open_held_out_images(job.data, job.recipe.holdout))
        for weights, build in models.items():
            name = f"{NLL}{job.suffix(weights)}"
            metrics |= _held_out_metrics(job, processes, build, held_out, name)
        for weights, build in models.items() if with_grids else ():
            model = processes.run(build)
            settings, map_parts = job.recipe.validation, processes.map_parts
            grid = draw_grid(model, job.sampling, settings, map_parts=map_parts)
            grids[f"samples{job.suffix(weights)}.png"] = png_bytes(grid)
        if preview is not None:
            metrics |= preview(next(iter(models.values()))())
    except Exception as error:  # A failed measurement must not end the training.
        failure = one_line(error)
    seconds = time.monotonic() - began
    measured = {"metrics": metrics, "grids": tuple(grids), "failure": failure, "seconds": seconds}
    return place.model_copy(update=measured), grids


def _held_out_metrics(
    job: TrainingJob,
    processes: Processes,
    build: Callable[[], FractalModel],
    held_out: PreparedSplit,
    name: str,
) -> dict[str, float]:
    """Return the held-out bits per dimension under `name` and, of more than one image, their
    standard error. FractalError: they are not finite."""
    model, settings = processes.run(build), job.recipe.validation
    likelihood = measure_held_out(model, held_out, settings, map_parts=processes.map_parts)
    if not likelihood.per_image.isfinite().all():
        raise FractalError("the held-out likelihood is not finite: lower base_learning_rate")
    metrics = {name: likelihood.mean}
    if len(likelihood.per_image) > 1:
        metrics[error_name(name)] = likelihood.standard_error
    return metrics
