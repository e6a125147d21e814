"""Preparation of a training: the size, manifest, fingerprint, job, folders and lock of a run."""

import time
from pathlib import Path

from pydantic import ValidationError

from fractal_model.common.errors import FractalError
from fractal_model.common.fingerprint import fingerprint
from fractal_model.common.validation import describe
from fractal_model.config.params import Params, Size
from fractal_model.config.training import TrainingConfig
from fractal_model.data.holdout import count_training_images
from fractal_model.data.manifest import Manifest, fit_size
from fractal_model.data.object_store import is_remote
from fractal_model.data.prepared import open_prepared
from fractal_model.tracking import registry, store
from fractal_model.tracking.spool import MetricSpool
from fractal_model.training.find_reference import find_reference
from fractal_model.training.job import PreviewInputs, TrainingJob
from fractal_model.training.start import Start


def load_size_and_manifest(
    params: Params, name: str, **changes: str | int | None
) -> tuple[Size, Manifest]:
    """Return the size `name`, with `changes` applied to its recipe, and the manifest of its data
    set. A change to None is ignored. FractalError: the data set does not fit the size or lacks
    held-out images that the recipe needs, the sampling settings have a guide, or a change is not
    allowed."""
    size = params.size(name)
    size.serving.require_no_guide()
    changed = {key: value for key, value in changes.items() if value is not None}
    if changed:
        size = size.model_copy(update={"training": _change(size.training, name, changed)})
    manifest = open_prepared(params.dataset_folder(size.training.dataset), "train").manifest
    has_held_out_images = size.training.holdout or "validation" in manifest.splits
    if size.training.needs_validation and not has_held_out_images:
        raise FractalError(
            f"training.{name} registers the best checkpoint or stops early, which needs held-out "
            f"images, but the data set {manifest.dataset} has none: register the data set with a "
            f"holdout, or set register to last and stop_after_epochs_without_gain to 0"
        )
    return fit_size(size, manifest), manifest


def _change(recipe: TrainingConfig, name: str, changes: dict[str, str | int]) -> TrainingConfig:
    if "workers" in changes:  # The recipe's minimum must not exceed the new maximum.
        changes = {"min_workers": min(recipe.min_workers, int(changes["workers"])), **changes}
    if "epochs" in changes:
        changes = {"warmup_epochs": _shorter_warmup(recipe, int(changes["epochs"])), **changes}
    try:
        return TrainingConfig.model_validate({**recipe.model_dump(), **changes})
    except ValidationError as error:
        raise FractalError(f"training.{name}: {describe(error, TrainingConfig)}") from error


def _shorter_warmup(recipe: TrainingConfig, epochs: int) -> int:
    """Number of warm-up epochs for a training of `epochs` epochs. If `epochs` is smaller than in
    the recipe, the warm-up shrinks in proportion, rounded down, but not below 1. A training of one
    epoch has no warm-up."""
    if not 0 < epochs < recipe.epochs:
        return recipe.warmup_epochs
    share = recipe.warmup_epochs * epochs // recipe.epochs
    return max(share, min(recipe.warmup_epochs, 1, epochs - 1))


def run_fingerprint(size: Size, manifest: Manifest, start: Start | None = None) -> str:
    """SHA-256 of everything that decides the weights of a run: model, recipe, data and, unless
    training starts from random weights, the content of the weights of `start`."""
    recipe = size.training
    # These weights are compared, if what is registered depends on held-out likelihoods.
    scored = [size.evaluation.weights] if recipe.needs_validation else []
    started = [f"start_from {start.checksum}"] if start is not None else []
    return fingerprint(
        size.model, recipe.without_operational_settings(), manifest.checksum, *scored, *started
    )


def make_job(
    params: Params,
    size: Size,
    manifest: Manifest,
    fingerprint: str,
    run_id: str,
    *,
    gflop_per_image: float | None = None,
) -> TrainingJob:
    """Describe the training of `size` with this fingerprint, whose metrics go to the MLflow run
    `run_id`. `gflop_per_image`: see `TrainingJob`."""
    champion = registry.aliased_version(size.name, registry.CHAMPION)
    champion_run = registry.training_run_id(size.name, champion)
    return TrainingJob(
        size=size.name,
        model=size.model,
        recipe=size.training,
        data=params.dataset_folder(size.training.dataset),
        storage=storage(params, size.name),
        local=local_folder(params, size.name, fingerprint),
        fingerprint=fingerprint,
        tracking_uri=store.tracking_uri(),
        run_id=run_id,
        images=count_training_images(manifest, size.training.holdout),
        gflop_per_image=gflop_per_image,
        sampling=size.sampling,
        scored_weights=size.evaluation.weights,
        preview=_preview_inputs(params, size),
        reference=find_reference(size, manifest, champion_run),
    )


def _preview_inputs(params: Params, size: Size) -> PreviewInputs | None:
    if not size.training.validation.preview_every:
        return None
    return PreviewInputs(
        evaluation=size.evaluation,
        reference=params.reference_file(size.training.dataset).absolute(),
        inception_weights=params.metrics.inception_weights,
    )


def local_folder(params: Params, size: str, fingerprint: str) -> Path:
    """Path of a run's folder inside the outputs folder of the machine that launches the run."""
    return params.paths.outputs / "training" / size / fingerprint[:16]


def lock_file(outputs: Path, size: str, fingerprint: str) -> Path:
    """Path of the file that a process locks while it launches or follows a run."""
    return outputs / "training" / f"{size}-{fingerprint[:16]}.lock"


def storage(params: Params, size: str) -> str:
    """Folder or address (s3://…) that contains all runs of a size."""
    root = params.paths.training or str(params.paths.outputs / "training")
    return f"{root.rstrip('/')}/{size}"


def move_old_run_aside(params: Params, size: str, fingerprint: str) -> Path | None:
    """Send the metrics of an earlier run to MLflow, then rename its local and its stored folder, so
    that training starts from the beginning. Return the new path of the stored folder; None if there
    was no such folder. FractalError: the stored folder is in an object store, or MLflow does not
    accept the metrics now."""
    name, local = fingerprint[:16], local_folder(params, size, fingerprint)
    stored = f"{storage(params, size)}/{name}"
    if is_remote(stored):
        raise FractalError(
            f"the run {name} of {size} is in the object store, {stored}: remove or rename it there "
            f"to train from the beginning, and run again without resume=false"
        )
    _deliver_metrics(local)
    suffix = time.strftime("-%Y%m%d-%H%M%S")
    for folder in {Path(stored), local}:
        if folder.exists():
            folder.rename(folder.with_name(folder.name + suffix))
    aside = Path(stored + suffix)
    return aside if aside.exists() else None


def _deliver_metrics(local: Path) -> None:
    for folder in sorted((local / "metrics").glob("*")):
        with MetricSpool(folder, run_id=folder.name) as spool:
            pass
        if spool.undelivered:
            raise FractalError(
                f"reports of the earlier run are not in MLflow yet, only in {folder}: nothing was "
                f"changed; run again when the MLflow server answers"
            )
