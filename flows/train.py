"""Flow `train-fractal`: launch Ray Train workers, log their progress, register the trained model.

As a command: `python -m flows.train --size digits`. A second run continues where the first stopped,
and does nothing if an equal run is registered already.

With RAY_ADDRESS=http://… training is a Ray job of that cluster, and this process follows the job.
With another address, this process drives the training on that cluster; without one, on a local Ray.
"""

import os
from pathlib import Path
from typing import Annotated, Literal

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from fractal_model.checkpoints.storage import fetch_checkpoint
from fractal_model.common.console import say
from fractal_model.common.errors import FractalError
from fractal_model.common.locks import hold_lock
from fractal_model.common.strict import NotNegativeInt, PositiveInt
from fractal_model.config.params import DEFAULT_FILE, Params, Size, load_params
from fractal_model.costs.flops import training_flops
from fractal_model.costs.shapes import training_shares
from fractal_model.data.manifest import Manifest
from fractal_model.tracking import registration, registry, runs, store
from fractal_model.tracking.reports import log_training_curves
from fractal_model.tracking.result_files import write_training_files
from fractal_model.tracking.tags import FINGERPRINT_TAG, SIZE_TAG, TRAINING_RUN_TAG
from fractal_model.training import launch
from fractal_model.training.job import TrainingJob
from fractal_model.training.ray_jobs.driver import drive
from fractal_model.training.ray_jobs.jobs import TrainingJobs
from fractal_model.training.ray_jobs.owner import Owner
from fractal_model.training.start import Start, read_start

from .automations import announce_version
from .command import flow_command, run_command
from .failures import report_failure
from .flow_owner import is_over, this_owner
from .run_names import name_run
from .training_progress import TrainingProgress

REGISTER_RETRY_SECONDS = [10.0, 30.0, 60.0, 120.0, 300.0, 300.0, 600.0, 600.0, 600.0, 900.0]
"""Seconds between attempts to register: MLflow may be down when a long training ends."""


@flow(name="train-fractal", flow_run_name=name_run("train"))
@report_failure
def train_fractal(
    size: str = "digits",
    dataset: str | None = None,
    epochs: PositiveInt | None = None,
    warmup_epochs: NotNegativeInt | None = None,
    batch_size: PositiveInt | None = None,
    workers: PositiveInt | None = None,
    precision: Literal["float32", "bfloat16"] | None = None,
    seed: NotNegativeInt | None = None,
    start_from: Annotated[str, Field(pattern=r"\S")] | None = None,
    resume: bool = True,
    params_file: Path = DEFAULT_FILE,
    set: list[str] | None = None,
) -> str:
    """Train a size on its data set and register the model. Return its version of `fractal-<size>`.

    A parameter that is set replaces the value of the recipe in params.yaml.

    Args:
        size: Name under `models` in params.yaml, such as mar-l.
        dataset: Name of a prepared data set with the resolution of the size.
        epochs: Number of times that training sees every image. With fewer than in the recipe,
            the warm-up is shorter in proportion.
        warmup_epochs: Number of epochs in which the learning rate rises to its peak.
        batch_size: Number of images per step over all workers; the learning rate is proportional.
        workers: Largest number of workers; the batch size must be a multiple of it.
        precision: Number format of the computation: float32, or bfloat16 with autocast.
        seed: Number that decides the order of the images and all other random numbers.
        start_from: Model whose weights training starts from: a folder, models:/NAME/VERSION or
            models:/NAME@ALIAS; #ema, #ema-0.999 or #model at its end chooses the weights.
        resume: Continue from the last checkpoint of an equal run; if this is off, training starts
            from the beginning and the old run's folder is renamed.
        params_file: Path of the settings file.
        set: Settings that replace those of the file, such as training.digits.epochs=5.
    """
    params = load_params(params_file, set)
    settings, manifest = launch.load_size_and_manifest(
        params,
        size,
        dataset=dataset,
        epochs=epochs,
        warmup_epochs=warmup_epochs,
        batch_size=batch_size,
        workers=workers,
        precision=precision,
        seed=seed,
        start_from=start_from,
    )
    store.connect(params.paths.outputs)
    start = read_start(settings, params.paths.outputs)
    fingerprint = launch.run_fingerprint(settings, manifest, start)
    reused = registration.reuse(size, fingerprint, settings.serving) if resume else None
    if reused is not None:
        version = report_reuse(size, reused)
    else:
        version = _train_and_register(params, settings, manifest, fingerprint, start, resume=resume)
    with runs.optional_step("files of the training"):
        write_training_files(size, version, params.paths.outputs / size)
    return version


def report_reuse(size: str, candidate: registration.Candidate) -> str:
    """Say that a version of an earlier run is the candidate, and announce it if it is registered
    again; return its number."""
    version = candidate.version
    if candidate.is_new:
        announce_version(size, f"models:/{registry.model_name(size)}/{version}")
        say(
            f"registered fractal-{size} version {version}: the weights of an earlier training with "
            f"the same settings and data, served with the settings of params.yaml"
        )
    else:
        say(f"fractal-{size} version {version} has the same settings and data: it is reused")
    return version


def _train_and_register(
    params: Params,
    size: Size,
    manifest: Manifest,
    fingerprint: str,
    start: Start | None,
    *,
    resume: bool,
) -> str:
    outputs, start_tags = params.paths.outputs, {} if start is None else start.tags
    with hold_lock(launch.lock_file(outputs, size.name, fingerprint)):
        if not resume:
            _begin_anew(params, size, fingerprint)
        with runs.training_run(size, manifest, fingerprint, outputs, start_tags) as run_id:
            shares = training_shares(size.model, size.training.mask_ratio)
            gflop = sum(training_flops(size.model, shares, activation_checkpointing=False)) / 1e9
            job = launch.make_job(
                params, size, manifest, fingerprint, run_id, gflop_per_image=gflop
            )
            if start is not None and job.start is not None:
                say(start.describe())
                start.store(job.start, size=size.name, fingerprint=fingerprint)
            checkpoint = train(job, size.training.epochs * job.images, outputs)
            tags = {FINGERPRINT_TAG: fingerprint, SIZE_TAG: size.name, TRAINING_RUN_TAG: run_id}
            version = register(size, checkpoint, tags)
            with runs.optional_step("comparison of the training curves"):
                for line in log_training_curves(run_id, job.reference):
                    say(f"{size.name}: {line}")
    announce_version(size.name, f"models:/{registry.model_name(size.name)}/{version}")
    say(f"registered fractal-{size.name} version {version} as candidate")
    return version


def _begin_anew(params: Params, size: Size, fingerprint: str) -> None:
    """Stop the jobs of an earlier equal run, rename that run's folder, and mark it as superseded in
    MLflow."""
    outputs = params.paths.outputs
    jobs = _cluster_jobs(outputs, size.name, fingerprint)
    if jobs is not None:
        jobs.stop_run(size.name, fingerprint, on_line=say)
    aside = launch.move_old_run_aside(params, size.name, fingerprint)
    runs.supersede_training(size, fingerprint, outputs)
    if aside is not None:
        say(f"the earlier training with these settings is in {aside}")


def _cluster_jobs(outputs: Path, size: str, fingerprint: str) -> TrainingJobs | None:
    """Client for the training jobs of the Ray cluster; None if RAY_ADDRESS is no http address."""
    address = os.environ.get("RAY_ADDRESS", "")
    if not address.startswith(("http://", "https://")):
        return None

    def is_owner_over(owner: Owner, theirs: str) -> bool:
        lock = None if theirs == fingerprint else launch.lock_file(outputs, size, theirs)
        return is_over(owner, lock)

    return TrainingJobs(address, this_owner(), is_owner_over)


@task(name="train", cache_policy=NO_CACHE)
def train(job: TrainingJob, images: int, outputs: Path) -> str:
    """Train to the end and show the progress. Return the checkpoint to register, as its folder or
    address."""
    jobs = _cluster_jobs(outputs, job.size, job.fingerprint)
    with TrainingProgress(job, images) as progress:
        if jobs is not None:
            return jobs.train(job, on_report=progress.report, on_line=progress.log_line)
        return drive(job, on_report=progress.report, on_line=progress.log_line)


@task(
    name="register",
    cache_policy=NO_CACHE,
    retries=len(REGISTER_RETRY_SECONDS),
    retry_delay_seconds=REGISTER_RETRY_SECONDS,
    retry_condition_fn=lambda task, run, state: (
        not isinstance(state.result(raise_on_failure=False), FractalError)
    ),
)
def register(size: Size, checkpoint: str, tags: dict[str, str]) -> str:
    """Register the checkpoint as a new version and make it the candidate; return its number."""
    with fetch_checkpoint(checkpoint) as folder:
        return registration.register(size.name, folder, serving=size.serving, tags=tags)


def check(params: Params, size: str, resume: bool, **changes: str | int | None) -> None:
    """Check before the flow starts. FractalError: a change of the recipe is not allowed, the data
    set is missing, damaged or does not fit, the MLflow server does not answer, or training cannot
    start from the model that the recipe names."""
    settings, _ = launch.load_size_and_manifest(params, size, **changes)
    store.connect(params.paths.outputs)
    read_start(settings, params.paths.outputs)


command = flow_command(train_fractal, check=check, key="version")


def main() -> None:
    run_command(command)


if __name__ == "__main__":
    main()
