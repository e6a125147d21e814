"""Run one trial of a study in a process of its own: train, measure, and return its row."""

import os
import shutil

import torch

from fractal_model.common.console import INTERRUPTED, output_mode
from fractal_model.common.errors import FractalError
from fractal_model.common.hardware import Hardware
from fractal_model.config.params import Size
from fractal_model.data.holdout import open_held_out_images
from fractal_model.evaluation.measure_likelihood import measure_likelihood
from fractal_model.evaluation.prepare_evaluation import prepare_evaluation
from fractal_model.model.fractal import FractalModel
from fractal_model.studies.trial import LIKELIHOODS, Trial
from fractal_model.studies.trial_model import build_model, give_guide, trained, tune
from fractal_model.studies.trial_table import TrialRow
from fractal_model.tracking import store, trial_runs
from fractal_model.tracking.training_history import history, last_position, training_seconds


def prepare_process(threads: int) -> None:
    """Prepare a process that runs trials one after another, with this number of threads for the
    measurements. Workers of a training have their own number."""
    torch.set_num_threads(threads)


def run_trial(trial: Trial, study_run: str) -> TrialRow:
    """Train and measure a trial; log it as a child of the MLflow run `study_run`. Ctrl-C ends the
    process. FractalError: the training failed, or a likelihood is not finite."""
    try:
        with output_mode(quiet=True, as_json=True):
            store.connect(trial.params.paths.outputs)
            return _train_and_measure(trial, study_run)
    except KeyboardInterrupt:  # The pool would go on with the next trial.
        os._exit(INTERRUPTED)


def _train_and_measure(trial: Trial, study_run: str) -> TrialRow:
    guide = None
    if trial.afterwards.guide is not None:
        with trained(trial.afterwards.guide, study_run) as guide:
            pass
    with trained(trial, study_run) as (job, checkpoint):
        if trial.afterwards.tuned is not None:
            checkpoint = tune(trial, checkpoint)
        model = build_model(trial, checkpoint)
        size = trial.size if guide is None else give_guide(trial, model, guide)
        metrics = _measure(trial, size, model)
        if trial.afterwards == (None, None):  # The run is that of the training alone.
            trial_runs.log_result(metrics)
    return TrialRow(
        variant=trial.variant,
        seed=trial.seed,
        fingerprint=trial.fingerprint[:16],
        images=last_position(job.run_id),
        minutes=training_seconds(job.run_id) / 60,
        machine=_machine(),
        curve=history(job.run_id, job.score),
        metrics={name: metrics.get(name) for name in trial.metrics},
    )


def _measure(trial: Trial, size: Size, model: FractalModel) -> dict[str, float]:
    """Return the metrics of a model that the trial asks for, without those that cannot be measured.
    `size` has the sampling settings, with the guide."""
    metrics = _measure_likelihoods(trial, model)
    if trial.needs_samples:
        evaluation = prepare_evaluation(trial.params, size, model, name=trial.name)
        with evaluation.lock():
            metrics |= evaluation.measure_samples(evaluation.draw_samples()).values
            shutil.rmtree(evaluation.folder, ignore_errors=True)
    return {name: value for name, value in metrics.items() if name in trial.metrics}


def _measure_likelihoods(trial: Trial, model: FractalModel) -> dict[str, float]:
    recipe, settings = trial.size.training, trial.size.evaluation
    held_out = open_held_out_images(trial.params.dataset_folder(recipe.dataset), recipe.holdout)
    metrics = {}
    for name in sorted(LIKELIHOODS.keys() & set(trial.metrics)):
        likelihood = measure_likelihood(
            model,
            held_out,
            lambda done: None,
            passes=settings.likelihood_passes,
            seed=settings.seed,
            conditional=LIKELIHOODS[name],
            largest=settings.batch_size,
        )
        if not likelihood.per_image.isfinite().all():
            raise FractalError(f"the {name} of {trial.name} is not finite: the training failed")
        metrics[name] = likelihood.mean
    return metrics


def _machine() -> str:
    hardware = Hardware.here()
    return ", ".join((f"{hardware.machine}, {hardware.cpus} CPUs", *hardware.gpus))
