"""From settings to a job: what a run is, where its files are, and what it is compared with."""

import time
from pathlib import Path

from pydantic import ValidationError

from fractal_model.common.errors import FractalError
from fractal_model.common.fingerprint import fingerprint
from fractal_model.common.validation import describe
from fractal_model.config.params import Params, Size
from fractal_model.config.training import TrainingConfig
from fractal_model.data.manifest import Manifest, fit_size
from fractal_model.data.object_store import is_remote
from fractal_model.data.prepared import open_prepared
from fractal_model.tracking.spool import MetricSpool


def load_size_and_manifest(
    params: Params, name: str, **changes: str | int | None
) -> tuple[Size, Manifest]:
    """A size, with the `changes` that are not None made to its recipe, and the manifest of the data
    set that it fits. FractalError: it does not fit, or a change is not allowed."""
    size = params.size(name)
    wanted = {key: value for key, value in changes.items() if value is not None}
    if wanted:
        size = size.model_copy(update={"training": _changed(size.training, name, wanted)})
    manifest = open_prepared(params.dataset_folder(size.training.dataset), "train").manifest
    return fit_size(size, manifest), manifest


def _changed(recipe: TrainingConfig, name: str, changes: dict[str, str | int]) -> TrainingConfig:
    if "workers" in changes:  # a number given on the way is a number, not a range
        changes = {"min_workers": min(recipe.min_workers, int(changes["workers"])), **changes}
    if "epochs" in changes:
        changes = {"warmup_epochs": _shorter_warmup(recipe, int(changes["epochs"])), **changes}
    try:
        return TrainingConfig.model_validate({**recipe.model_dump(), **changes})
    except ValidationError as error:
        raise FractalError(f"training.{name}: {describe(error, TrainingConfig)}") from error


def _shorter_warmup(recipe: TrainingConfig, epochs: int) -> int:
    """Warm-up of a shorter training, in epochs: the recipe's share, rounded down, at least one."""
    if not 0 < epochs < recipe.epochs:
        return recipe.warmup_epochs
    share = recipe.warmup_epochs * epochs // recipe.epochs
    return max(share, min(recipe.warmup_epochs, 1, epochs - 1))


def run_fingerprint(size: Size, manifest: Manifest) -> str:
    """The run's fingerprint: one checksum of everything that decides the weights."""
    return fingerprint(size.model, size.training.deciding(), manifest.checksum)


def local_folder(params: Params, size: str, mark: str) -> Path:
    """A run's folder on the machine that launches it."""
    return params.paths.outputs / "training" / size / mark[:16]


def lock_file(outputs: Path, size: str, mark: str) -> Path:
    """The lock that the process holds that launches or follows a run."""
    return outputs / "training" / f"{size}-{mark[:16]}.lock"


def storage(params: Params, size: str) -> str:
    """The folder or address that a size's runs are kept in."""
    root = params.paths.training or str(params.paths.outputs / "training")
    return f"{root.rstrip('/')}/{size}"


def move_old_run_aside(params: Params, size: str, mark: str) -> Path | None:
    """Rename the folders of an earlier run, here and where runs are kept, so that training begins
    anew; return the new name of the latter.

    The run's metrics are sent to MLflow first, but for what its workers reported after it was
    killed. FractalError: the run is in an object store, or MLflow does not take the metrics now.
    """
    kept, local = f"{storage(params, size)}/{mark[:16]}", local_folder(params, size, mark)
    if is_remote(kept):
        raise FractalError(
            f"the run {mark[:16]} of {size} is kept in {kept}: remove or rename it there to begin "
            f"anew, and run again without resume=false"
        )
    _deliver_metrics(local)
    suffix = time.strftime("-%Y%m%d-%H%M%S")
    for folder in {Path(kept), local}:
        if folder.exists():
            folder.rename(folder.with_name(folder.name + suffix))
    aside = Path(kept + suffix)
    return aside if aside.exists() else None


def _deliver_metrics(local: Path) -> None:
    for folder in sorted((local / "metrics").glob("*")):
        with MetricSpool(folder, run_id=folder.name) as spool:
            pass
        if spool.waiting:
            raise FractalError(
                f"{spool.waiting} reports of the earlier run wait for MLflow in {folder}: nothing "
                f"was changed, run again once the server takes them"
            )
