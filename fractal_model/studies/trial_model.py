"""The model of a trial: trained by Ray Train, and what happens to it after its training.

Decided here: the training is an ordinary one, with the fingerprint, the folder and the MLflow run
that `fractal train` gives it. If it was completed before, its checkpoint is used again, and so are
the rounds of a fine-tuning.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from fractal_model.checkpoints.checkpoint import load_checkpoint
from fractal_model.checkpoints.storage import fetch_checkpoint, is_complete
from fractal_model.common.locks import wait_for_lock
from fractal_model.config.params import Size
from fractal_model.data.holdout import open_training_images
from fractal_model.model.fractal import FractalModel
from fractal_model.studies.trial import Trial
from fractal_model.tracking import runs, trial_runs
from fractal_model.tracking.model_source import attach_guide, select_weights
from fractal_model.training import launch
from fractal_model.training.ddo_rounds import Tuning, tuning_fingerprint
from fractal_model.training.job import TrainingJob
from fractal_model.training.ray_jobs.driver import drive
from fractal_model.training.start import Start, read_start


class Trained(NamedTuple):
    """A completed training."""

    job: TrainingJob
    checkpoint: str
    """Folder or address."""


@contextmanager
def trained(trial: Trial, study_run: str) -> Iterator[Trained]:
    """Train the model of a trial unless that was done before. Within the context the training's
    MLflow run, a child of `study_run`, is active and locked."""
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
        yield Trained(job, _train(job, start))


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


def build_model(trial: Trial, checkpoint: str) -> FractalModel:
    """Load the weights of a checkpoint that the trial measures."""
    with fetch_checkpoint(checkpoint) as folder:
        return load_checkpoint(folder).build_model(trial.size.evaluation.weights)


def tune(trial: Trial, checkpoint: str) -> str:
    """Fine-tune the model of a checkpoint with its own samples, as `fractal tune-ddo` does. Return
    the folder of the last round's checkpoint. FractalError: a loss or gradient is not finite, or
    the disk is full."""
    params, recipe, weights = trial.params, trial.size.training, trial.afterwards.tuned
    assert weights is not None
    with fetch_checkpoint(checkpoint) as folder:
        size, manifest = launch.load_size_and_manifest(
            params,
            trial.size.name,
            seed=trial.seed,
            start_from=select_weights(str(folder), weights),
        )
        start = read_start(size, params.paths.outputs)
    assert start is not None and start.model is not None  # The size has a start.
    key = tuning_fingerprint(size, trial.tuning, manifest, start)
    images = open_training_images(params.dataset_folder(recipe.dataset), recipe.holdout)
    place = launch.local_folder(params, size.name, key)
    tuning = Tuning(size, trial.tuning, images, key, place)
    lock = launch.lock_file(params.paths.outputs, size.name, key)
    with wait_for_lock(lock, lambda: None):
        return str(tuning.run(start.model, lambda *samples: None, lambda *step: None))


def give_guide(trial: Trial, model: FractalModel, guide: Trained) -> Size:
    """Let the trained model of the trial's guide guide the samples of `model`. Return the size of
    the trial with the guide's checksum in its sampling settings."""
    assert trial.afterwards.guide is not None
    weights = trial.afterwards.guide.size.evaluation.weights
    with fetch_checkpoint(guide.checkpoint) as folder:
        source = select_weights(str(folder), weights)
        sampling = trial.size.sampling.model_copy(update={"guide": source})
        sampling = attach_guide(model, sampling, trial.params.paths.outputs)
    return trial.size.model_copy(update={"sampling": sampling})
