"""One trial of a study: a variant trained with one seed, by Ray Train, and measured.

Decided here: the training is an ordinary one, with the fingerprint, the folder and the MLflow run
that `fractal train` gives it. If it was completed before, its checkpoint is used again.
"""

import os
import shutil
from dataclasses import dataclass

import torch

from fractal_model.checkpoints.checkpoint import load_checkpoint
from fractal_model.checkpoints.storage import fetch_checkpoint, is_complete
from fractal_model.common.console import INTERRUPTED, output_mode
from fractal_model.common.errors import FractalError
from fractal_model.common.fingerprint import fingerprint
from fractal_model.common.hardware import Hardware
from fractal_model.common.locks import wait_for_lock
from fractal_model.config.params import Params, Size
from fractal_model.data.holdout import count_training_images, open_held_out_images
from fractal_model.data.manifest import Manifest
from fractal_model.evaluation.inputs import EvaluationInputs
from fractal_model.evaluation.measure_likelihood import measure_likelihood
from fractal_model.evaluation.prepare_evaluation import prepare_evaluation
from fractal_model.metrics.names import CONDITIONAL_NLL, NLL
from fractal_model.model.fractal import FractalModel
from fractal_model.studies.trial_table import TrialRow
from fractal_model.tracking import runs, store, trial_runs
from fractal_model.tracking.training_history import history, last_position, training_seconds
from fractal_model.training import launch
from fractal_model.training.job import TrainingJob
from fractal_model.training.ray_jobs.driver import drive
from fractal_model.training.start import Start, read_start

_LIKELIHOODS = {NLL: False, CONDITIONAL_NLL: True}


@dataclass(frozen=True)
class Trial:
    """One variant with one seed, checked and ready to be run in another process."""

    variant: str
    seed: int
    params: Params
    size: Size
    manifest: Manifest
    training: str
    """Fingerprint of the training."""
    fingerprint: str
    """Fingerprint of the result: of the training, and of what decides how it is measured."""
    metrics: tuple[str, ...]

    @property
    def images(self) -> int:
        """Number of images that the whole training sees."""
        recipe = self.size.training
        return recipe.epochs * count_training_images(self.manifest, recipe.holdout)

    @property
    def name(self) -> str:
        return f"{self.variant}, seed {self.seed}"


def plan_trial(
    params: Params, size_name: str, variant: str, seed: int, metrics: tuple[str, ...]
) -> Trial:
    """Check one trial. FractalError: the data set, the reference of the sample metrics or the
    weights to start from are missing or do not fit the size. MLflow must be connected."""
    size, manifest = launch.load_size_and_manifest(params, size_name, seed=seed)
    training = launch.run_fingerprint(size, manifest, read_start(size, params.paths.outputs))
    settings = size.evaluation
    measured = [f"{settings.weights} {settings.likelihood_passes} {settings.seed}"]
    if _needs_samples(metrics):
        inputs = EvaluationInputs(params, size.training.dataset)
        measured.append(inputs.protocol(settings, sampling=size.sampling).fingerprint)
    result = fingerprint(training, *measured)
    return Trial(variant, seed, params, size, manifest, training, result, metrics)


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
    outputs, size = trial.params.paths.outputs, trial.size
    start = read_start(size, outputs)
    tags = {} if start is None else start.tags
    lock = launch.lock_file(outputs, size.name, trial.training)
    with (
        wait_for_lock(lock, lambda: None),
        runs.training_run(size, trial.manifest, trial.training, outputs, tags) as run_id,
    ):
        trial_runs.join_study(run_id, study_run)
        job = launch.make_job(trial.params, size, trial.manifest, trial.training, run_id)
        metrics = _measure(trial, _train(job, start))
        trial_runs.log_result(metrics)
    return TrialRow(
        variant=trial.variant,
        seed=trial.seed,
        fingerprint=trial.fingerprint[:16],
        images=last_position(run_id),
        minutes=training_seconds(run_id) / 60,
        machine=_machine(),
        curve=history(run_id, job.score),
        metrics={name: metrics.get(name) for name in trial.metrics},
    )


def _train(job: TrainingJob, start: Start | None) -> str:
    """Return the folder or address of the checkpoint of a job, after training it if it is not there
    yet."""
    earlier = trial_runs.read_checkpoint(job.run_id)
    if earlier is not None and is_complete(earlier):
        return earlier
    if start is not None and job.start is not None:
        start.store(job.start, size=job.size, fingerprint=job.fingerprint)
    checkpoint = drive(job, on_report=lambda report: None, on_line=lambda line: None)
    trial_runs.store_checkpoint_place(job.run_id, checkpoint)
    return checkpoint


def _measure(trial: Trial, checkpoint: str) -> dict[str, float]:
    """Return the metrics of a checkpoint that the trial asks for, without those that cannot be
    measured."""
    with fetch_checkpoint(checkpoint) as folder:
        model = load_checkpoint(folder).build_model(trial.size.evaluation.weights)
    metrics = _measure_likelihoods(trial, model)
    if _needs_samples(trial.metrics):
        evaluation = prepare_evaluation(trial.params, trial.size, model, name=trial.name)
        with evaluation.lock():
            metrics |= evaluation.measure_samples(evaluation.draw_samples()).values
            shutil.rmtree(evaluation.folder, ignore_errors=True)
    return {name: value for name, value in metrics.items() if name in trial.metrics}


def _measure_likelihoods(trial: Trial, model: FractalModel) -> dict[str, float]:
    recipe, settings = trial.size.training, trial.size.evaluation
    held_out = open_held_out_images(trial.params.dataset_folder(recipe.dataset), recipe.holdout)
    metrics = {}
    for name in sorted(_LIKELIHOODS.keys() & set(trial.metrics)):
        likelihood = measure_likelihood(
            model,
            held_out,
            lambda done: None,
            passes=settings.likelihood_passes,
            seed=settings.seed,
            conditional=_LIKELIHOODS[name],
            largest=settings.batch_size,
        )
        if not likelihood.per_image.isfinite().all():
            raise FractalError(f"the {name} of {trial.name} is not finite: the training failed")
        metrics[name] = likelihood.mean
    return metrics


def _needs_samples(metrics: tuple[str, ...]) -> bool:
    return bool(set(metrics) - set(_LIKELIHOODS))


def _machine() -> str:
    hardware = Hardware.here()
    return ", ".join((f"{hardware.machine}, {hardware.cpus} CPUs", *hardware.gpus))
