"""Files of a tiny model and a tiny data set, and a folder in which commands run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from fractal_model.checkpoints.checkpoint import Progress, save_checkpoint
from fractal_model.cli.app import app
from fractal_model.config.serving import ServingConfig
from fractal_model.data.writing import write_prepared
from tests.support import random_images, tiny_model

TINY = {"widths": [16, 16, 8], "blocks": [1, 1, 1], "heads": [2, 2, 2]}


def save_tiny(
    folder: Path,
    kind: str = "mar",
    *,
    averages: Sequence[str] = (),
    serving: ServingConfig | None = None,
    **changes: object,
) -> Path:
    """Save a checkpoint of a tiny model, with other weights for each of the `averages`."""
    progress = Progress(size="digits", fingerprint="0" * 64, position=1, steps=1)
    save_checkpoint(
        folder,
        model=tiny_model(kind, **changes),
        optimizer={},
        progress=progress,
        averages={
            name: tiny_model(kind, sharpen=2.0 + number, **changes).state_dict()
            for number, name in enumerate(averages)
        },
        serving=serving,
    )
    return folder


def save_images(
    folder: Path,
    *,
    size: int = 4,
    classes: int = 4,
    count: int = 11,
    split: str = "validation",
    names: Sequence[str] = (),
) -> Path:
    pixels = random_images(count, size=size).permute(0, 2, 3, 1).numpy()
    write_prepared(
        folder,
        dataset=folder.name,
        source="random numbers",
        preprocessing="none",
        resolution=size,
        class_names=[*names] or [f"kind {i}" for i in range(classes)],
        splits={split: [(image, i % classes) for i, image in enumerate(pixels)]},
    )
    return folder


@dataclass(frozen=True)
class Workplace:
    folder: Path
    model: Path
    data: Path
    params: Path

    def run(self, command: str, *arguments: object) -> str:
        """Run a command and return its output; its exception is raised."""
        words = [command, "--params", self.params, *arguments]
        if "--model" not in arguments:
            words += ["--model", self.model]
        done = CliRunner().invoke(app, [str(word) for word in words])
        if done.exception is not None:
            raise done.exception
        return done.output
