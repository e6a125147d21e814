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

from fractal_model.config.validation import ValidationConfig
from fractal_model.data.digits import digits_splits
from fractal_model.data.writing import write_prepared
from fractal_model.training.job import Report, TrainingJob, ValidationPoint
from fractal_model.training.ray_train.run import run_training
from tests.support import random_images

IMAGES, BATCH, HELD_OUT = 64, 8, 8
VALIDATION = ValidationConfig(passes=2, grid_classes=2, grid_columns=2, timeout_seconds=120)


def save_training_images(folder: Path) -> Path:
    pixels = random_images(IMAGES + HELD_OUT, size=4).permute(0, 2, 3, 1).numpy()
    write_prepared(
        folder,
        dataset="tiny",
        source="random numbers",
        preprocessing="none",
        resolution=4,
        class_names=[f"kind {i}" for i in range(4)],
        splits={
            "train": [(image, i % 4) for i, image in enumerate(pixels[:IMAGES])],
            "validation": [(image, i % 4) for i, image in enumerate(pixels[IMAGES:])],
        },
    )
    return folder


def save_few_digits(folder: Path, images: int, held_out: int) -> Path:
    """Write a data set of few digits, on which any model overfits."""
    splits = digits_splits(validation_images=297, seed=0)
    write_prepared(
        folder,
        dataset="few-digits",
        source="scikit-learn",
        preprocessing="none",
        resolution=8,
        class_names=[str(digit) for digit in range(10)],
        splits={
            "train": splits["train"][:images],
            "validation": splits["validation"][:held_out],
        },
    )
    return folder


@dataclass
class Run:
    """One training and its reports."""

    job: TrainingJob
    reports: list[Report] = field(default_factory=list)
    points: list[ValidationPoint] = field(default_factory=list)
    registered: Path | None = None
    """Folder of the checkpoint that is registered, once the run has ended."""

    @property
    def folder(self) -> Path:
        return Path(self.job.storage) / self.job.name

    @property
    def position(self) -> int:
        return self.reports[-1].position if self.reports else 0

    def train(self, **options: object) -> dict:
        """Train to the end and return the weights."""
        checkpoint = run_training(
            self.job,
            on_report=self.reports.append,
            on_point=lambda point, grids: self.points.append(point),
            **options,
        )
        self.registered = Path(checkpoint)
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
