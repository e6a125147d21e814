"""Flow `train-fractal`: launch Ray Train workers, track them, register what they trained.

As a command: `python -m flows.train --size digits`. Running it again goes on where it stopped,
and does nothing when an equal run is registered already.

With RAY_ADDRESS=http://… training is submitted to that cluster as a Ray job and followed from
here; with another address this process drives it there; without one, on a Ray of its own.
"""

import os
from pathlib import Path
from typing import Literal

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.command import run_flow
from flows.failures import report_failure
from flows.flow_owner import is_over, this_owner
from flows.training_progress import TrainingProgress
from fractal_model.checkpoints.storage import fetch_checkpoint
from fractal_model.common.console import say
from fractal_model.common.errors import FractalError
from fractal_model.common.locks import hold_lock
from fractal_model.common.strict import NotNegativeInt, PositiveInt
from fractal_model.config.params import DEFAULT_FILE, Params, Size, load_params
from fractal_model.data.manifest import Manifest
from fractal_model.tracking import registration, registry, runs, store
from fractal_model.tracking.tags import FINGERPRINT_TAG, SIZE_TAG, TRAINING_RUN_TAG
from fractal_model.training import launch
from fractal_model.training.job import TrainingJob
from fractal_model.training.ray_jobs.driver import drive
from fractal_model.training.ray_jobs.jobs import TrainingJobs
from fractal_model.training.ray_jobs.owner import Owner

REGISTER_RETRY_SECONDS = [10.0, 30.0, 60.0, 120.0, 300.0, 300.0, 600.0, 600.0, 600.0, 900.0]
"""Where MLflow is away when a training of days ends."""


@flow(name="train-fractal")
@report_failure
def train_fractal(
    size: str = "digits",
    dataset: str | None = None,
    epochs: PositiveInt | None = None,
    warmup_epochs: NotNegativeInt | None = None,
    batch_size: PositiveInt | None = None,
    workers: PositiveInt | None = None,
    precision: Literal["float32", "bfloat16"] | None = None,
    resume: bool = True,
    params_file: Path = DEFAULT_FILE,
) -> str:
    """Train a size on its data set; returns the version of `fractal-<size>` in the registry.

    What is given replaces the recipe of params.yaml.

    Args:
        size: A row of `models` in params.yaml, such as mar-l.
        dataset: A prepared data set of the size's resolution.
        epochs: Times that every image is seen; with fewer than the recipe's the warm-up is shorter
            in proportion.
        warmup_epochs: Epochs in which the learning rate rises to its peak.
        batch_size: Images a step, over all workers; the learning rate follows it.
        workers: The most that are used; the batch has to divide by it.
        precision: float32, or bfloat16 by autocast.
        resume: Go on from the last checkpoint of an equal run. Without it training begins anew,
            and what was there is put aside.
        params_file: The settings.
    """
    params = load_params(params_file)
    chosen, manifest = launch.load_size_and_manifest(
        params,
        size,
        dataset=dataset,
        epochs=epochs,
        warmup_epochs=warmup_epochs,
        batch_size=batch_size,
        workers=workers,
        precision=precision,
    )
    store.connect(params.paths.outputs)
    fingerprint = launch.run_fingerprint(chosen, manifest)
    version = registration.reuse(size, fingerprint, chosen.serving) if resume else None
    if version is not None:
        say(f"fractal-{size} version {version} is trained from the same settings and data: kept")
        return version
    return _train_and_register(params, chosen, manifest, fingerprint, resume=resume)


def _train_and_register(
    params: Params, size: Size, manifest: Manifest, fingerprint: str, *, resume: bool
) -> str:
    outputs = params.paths.outputs
    with hold_lock(launch.lock_file(outputs, size.name, fingerprint)):
        if not resume:
            _begin_anew(params, size, fingerprint)
        with runs.training_run(size, manifest, fingerprint, outputs) as run_id:
            job = _job(params, size, fingerprint, run_id)
            images = size.training.epochs * manifest.splits["train"].images
            checkpoint = train(job, images, outputs)
            tags = {FINGERPRINT_TAG: fingerprint, SIZE_TAG: size.name, TRAINING_RUN_TAG: run_id}
            version = register(size, checkpoint, tags)
    say(f"registered fractal-{size.name} version {version} as candidate")
    return version


def _begin_anew(params: Params, size: Size, fingerprint: str) -> None:
    """Nothing of an earlier run of these settings is at work, found or added to any more."""
    outputs = params.paths.outputs
    jobs = _jobs(outputs, size.name, fingerprint)
    if jobs is not None:
        jobs.stop_run(size.name, fingerprint, on_line=say)
    aside = launch.move_old_run_aside(params, size.name, fingerprint)
    runs.supersede_training(size, fingerprint, outputs)
    if aside is not None:
        say(f"what was trained from these settings before is in {aside}")


def _jobs(outputs: Path, size: str, fingerprint: str) -> TrainingJobs | None:
    """Those of the cluster in RAY_ADDRESS; None where it takes none."""
    address = os.environ.get("RAY_ADDRESS", "")
    if not address.startswith(("http://", "https://")):
        return None

    def over(owner: Owner, theirs: str) -> bool:
        lock = None if theirs == fingerprint else launch.lock_file(outputs, size, theirs)
        return is_over(owner, lock)

    return TrainingJobs(address, this_owner(), over)


def _job(params: Params, size: Size, fingerprint: str, run_id: str) -> TrainingJob:
    champion = registry.aliased_version(size.name, registry.CHAMPION)
    return TrainingJob(
        size=size.name,
        model=size.model,
        recipe=size.training,
        data=params.dataset_folder(size.training.dataset),
        storage=launch.storage(params, size.name),
        local=launch.local_folder(params, size.name, fingerprint),
        fingerprint=fingerprint,
        tracking_uri=store.tracking_uri(),
        run_id=run_id,
        reference=runs.curve(registry.training_run_id(size.name, champion), "loss"),
    )


@task(name="train", cache_policy=NO_CACHE)
def train(job: TrainingJob, images: int, outputs: Path) -> str:
    """Run the workers to the end of the recipe; returns the last checkpoint."""
    jobs = _jobs(outputs, job.size, job.fingerprint)
    with TrainingProgress(job, images) as progress:
        if jobs is not None:
            return jobs.train(job, on_report=progress.report, on_line=progress.line)
        return drive(job, on_report=progress.report)


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
    """Put the checkpoint into the registry under the alias `candidate`."""
    with fetch_checkpoint(checkpoint) as folder:
        return registration.register(size.name, folder, serving=size.serving, tags=tags)


def check(params: Params, size: str, resume: bool, **changes: str | int | None) -> None:
    """Before anything starts. FractalError: a change of the recipe is not allowed, the data set is
    missing, damaged or another's, or the MLflow server does not answer."""
    launch.load_size_and_manifest(params, size, **changes)
    store.connect(params.paths.outputs)


def main() -> None:
    run_flow(train_fractal, check=check)


if __name__ == "__main__":
    main()
