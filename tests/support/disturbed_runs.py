"""Training runs that a test disturbs, with their reports and checkpoints."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import ray
from safetensors.torch import load_file

from fractal_model.data.writing import write_prepared
from fractal_model.training.job import Report, TrainingJob
from fractal_model.training.ray_train.run import run_training
from tests.support import random_images

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
    """One training and its reports."""

    job: TrainingJob
    reports: list[Report] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return Path(self.job.storage) / self.job.name

    @property
    def position(self) -> int:
        return self.reports[-1].position if self.reports else 0

    def train(self, **options: object) -> dict:
        """Train to the end and return the weights."""
        checkpoint = run_training(self.job, on_report=self.reports.append, **options)
        assert Path(checkpoint.path) == self.newest
        return self.weights()

    @property
    def newest(self) -> Path:
        """Folder of the newest checkpoint."""
        return max(path for path in self.folder.glob("checkpoint_*") if path.is_dir())

    def weights(self) -> dict:
        """The weights of the newest checkpoint."""
        return load_file(self.newest / "model.safetensors")

    def when(self, reached: int, action: Callable[[], None]) -> threading.Thread:
        """Start a thread that calls `action` when the run has reported position `reached`."""

        def wait() -> None:
            deadline = time.monotonic() + 240
            while self.position < reached and time.monotonic() < deadline:
                time.sleep(0.02)
            action()

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        return thread


def training_workers() -> list[psutil.Process]:
    """The processes of Ray's training workers in clusters that this process has started."""
    workers = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ended in the meantime
            if "RayTrainWorker" in " ".join(process.cmdline()):
                workers.append(process)
    return workers


def assert_equal(ours: dict, theirs: dict) -> None:
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def cluster_cpus() -> float:
    return ray.available_resources().get("CPU", 0)
