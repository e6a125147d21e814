"""A small data set and runs on it, for tests of faults during training. `make test-faults`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fractal_model.config.model import ModelConfig
from fractal_model.parallel.ray_cluster import ray_cluster
from tests.support import tiny_config
from tests.support.disturbed_runs import BATCH, Run, save_training_images
from tests.support.recipes import RECIPE, make_job

MODEL = tiny_config("mar", dropout=0.1)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_training_images(tmp_path_factory.mktemp("faults") / "tiny")


@pytest.fixture
def new_run(data: Path, tmp_path: Path) -> Callable[..., Run]:
    return run_maker(tmp_path, data)


def run_maker(folder: Path, data: Path) -> Callable[..., Run]:
    """Return a function that makes a run on `data`, with all its files in `folder`."""

    def make(
        name: str = "run", epochs: int = 6, model: ModelConfig = MODEL, **recipe: object
    ) -> Run:
        changes = {
            "batch_size": BATCH,
            "epochs": epochs,
            "base_learning_rate": 0.1,
            "log_every_steps": 2,
            "checkpoint_every_epochs": 1,
            "images_per_worker": 3,
            "stall_seconds": 20.0,
            **recipe,
        }
        job = make_job(
            folder / name,
            model=model,
            recipe=RECIPE.model_copy(update=changes),
            data=data,
            local=folder / f"{name}-local",
        )
        return Run(job)

    return make


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with ray_cluster(cpus=4):
        yield


@pytest.fixture(scope="module")
def straight_run(data: Path, cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run without any fault."""
    run = run_maker(tmp_path_factory.mktemp("straight"), data)()
    run.train()
    return run


@pytest.fixture
def straight(straight_run: Run) -> dict:
    """Weights of the finished run without any fault."""
    return straight_run.weights()
