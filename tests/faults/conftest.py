"""A small data set and a run on it, for what can go wrong while it trains. `make test-faults`."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import ray
from safetensors.torch import load_file

from fractal_model.data.writing import write_prepared
from fractal_model.parallel.ray_cluster import ray_cluster
from fractal_model.training.job import Report, TrainingJob
from fractal_model.training.ray_train.run import run_training
from tests.conftest import random_images, tiny_config
from tests.training.test_trainer import RECIPE

IMAGES, BATCH = 64, 8


def save_training_images(folder: Path) -> Path:
    pixels = random_images(IMAGES, size=4).permute(0, 2, 3, 1).numpy()
    write_prepared(
        folder,
        dataset="tiny",
        source="random numbers",
        preprocessing="none",
        resolution=4,
        class_names=[f"kind {i}" for i in range(4)],
        splits={"train": [(image, i % 4) for i, image in enumerate(pixels)]},
    )
    return folder


@dataclass
class Run:
    """One training, and what it reported."""

    job: TrainingJob
    reports: list[Report] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return Path(self.job.storage) / self.job.name

    @property
    def position(self) -> int:
        return int(self.reports[-1]["position"]) if self.reports else 0

    def train(self, **options: object) -> dict:
        """To the end; returns the weights."""
        checkpoint = run_training(self.job, on_report=self.reports.append, **options)
        return load_file(Path(checkpoint.path) / "model.safetensors")

    def when(self, reached: int, action: Callable[[], None]) -> threading.Thread:
        """Does it once the run has reported this position."""

        def wait() -> None:
            deadline = time.monotonic() + 240
            while self.position < reached and time.monotonic() < deadline:
                time.sleep(0.02)
            action()

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        return thread


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_training_images(tmp_path_factory.mktemp("faults") / "tiny")


@pytest.fixture
def new_run(data: Path, tmp_path: Path) -> Callable[..., Run]:
    def make(name: str = "run", epochs: int = 6, **recipe: object) -> Run:
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
        job = TrainingJob(
            size="tiny",
            model=tiny_config("mar", dropout=0.1),
            recipe=RECIPE.model_copy(update=changes),
            data=data,
            storage=str(tmp_path / name),
            local=tmp_path / f"{name}-local",
            fingerprint="f" * 64,
            tracking_uri="",
            run_id="",
        )
        return Run(job)

    return make


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with ray_cluster(cpus=4):
        yield


@pytest.fixture
def straight(new_run: Callable[..., Run], cluster: None) -> dict:
    """The weights of the run that nothing disturbs."""
    return new_run("straight").train()


def workers() -> list[psutil.Process]:
    """Ray's processes that train, of the clusters that this process has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ended while it was looked at
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def assert_equal(ours: dict, theirs: dict) -> None:
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def cluster_cpus() -> float:
    return ray.available_resources().get("CPU", 0)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
