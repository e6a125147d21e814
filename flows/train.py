"""Flow `train-fractal`: launch Ray Train workers, track them, register what they trained.

As a command: `python -m flows.train --size digits`. Running it again goes on where it stopped,
and does nothing when an equal run is registered already.
"""

from __future__ import annotations

from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.command import run_flow
from fractal_model.console import progress_bar, say
from fractal_model.data.manifest import Manifest
from fractal_model.data.prepared import open_prepared
from fractal_model.fingerprint import fingerprint
from fractal_model.locks import only_one
from fractal_model.params import DEFAULT_FILE, Params, Size, load_params
from fractal_model.ray_cluster import ray_cluster
from fractal_model.tracking import registry, runs, store
from fractal_model.training.ray_training import TrainingJob, run_training


@flow(name="train-fractal")
def train_fractal(size: str = "digits", params_file: Path = DEFAULT_FILE) -> str:
    """Train a size on its data set; returns the version of `fractal-<size>` in the registry."""
    params = load_params(params_file)
    chosen, manifest = with_data(params, size)
    store.connect(params.paths.outputs)
    mark = mark_of(chosen, manifest)
    version = registry.find_version(size, mark)
    if version is not None:
        registry.nominate(size, version)
        say(f"fractal-{size} version {version} is trained from the same settings and data: kept")
        return version
    return _train_and_register(params, chosen, manifest, mark)


def _train_and_register(params: Params, size: Size, manifest: Manifest, mark: str) -> str:
    with (
        only_one(lock_file(params, size, mark)),
        runs.training_run(size, manifest, mark, params.paths.outputs) as run_id,
    ):
        checkpoint = train(params, size, manifest, mark, run_id)
        tags = {
            registry.FINGERPRINT_TAG: mark,
            runs.SIZE_TAG: size.name,
            "fractal.training_run": run_id,
        }
        version = register(size, checkpoint, tags)
    say(f"registered fractal-{size.name} version {version} as candidate")
    return version


@task(name="train", cache_policy=NO_CACHE)
def train(params: Params, size: Size, manifest: Manifest, mark: str, run_id: str) -> Path:
    """Run the workers to the end of the recipe; returns the last checkpoint."""
    recipe = size.training
    with ray_cluster(cpus=recipe.workers * recipe.cpus_per_worker):
        job = TrainingJob(
            size=size.name,
            model=size.model,
            recipe=recipe,
            data=params.dataset_folder(recipe.dataset),
            runs=params.paths.outputs / "training" / size.name,
            fingerprint=mark,
        )
        images = recipe.epochs * manifest.splits["train"].images
        with progress_bar(f"training fractal-{size.name}, images", images) as update:

            def on_report(report: dict[str, float]) -> None:
                note = f"{report['images_per_second']:.0f} images/s, loss {report['loss']:.3f}"
                update(int(report["position"]), note)
                runs.log_report(run_id, report)

            return run_training(job, on_report=on_report)


@task(name="register", cache_policy=NO_CACHE)
def register(size: Size, checkpoint: Path, tags: dict[str, str]) -> str:
    """Put the checkpoint into the registry under the alias `candidate`."""
    return registry.register(size.name, checkpoint, sampling=size.sampling, tags=tags)


def check(params: Params, size: str) -> None:
    """Before anything starts. FractalError: the data set is missing, damaged or another's, or the
    MLflow server does not answer."""
    with_data(params, size)
    store.connect(params.paths.outputs)


def with_data(params: Params, name: str) -> tuple[Size, Manifest]:
    """A size that fits its data set, and the data set's manifest. FractalError: it does not."""
    size = params.size(name)
    manifest = open_prepared(params.dataset_folder(size.training.dataset), "train").manifest
    return size.fitted_to(manifest), manifest


def mark_of(size: Size, manifest: Manifest) -> str:
    """What decides the weights, as one checksum."""
    return fingerprint(size.model, size.training.deciding(), manifest.checksum)


def lock_file(params: Params, size: Size, mark: str) -> Path:
    return params.paths.outputs / "training" / f"{size.name}-{mark[:16]}.lock"


def main() -> None:
    run_flow(train_fractal, check=check)


if __name__ == "__main__":
    main()
