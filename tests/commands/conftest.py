"""A tiny model, a tiny data set and settings of their own for the commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fractal_model.checkpoints.checkpoint import Progress, save_checkpoint
from fractal_model.cli.app import app
from fractal_model.data.writing import write_prepared
from tests.conftest import KINDS, random_images, tiny_model

REPOSITORY = Path(__file__).parents[2]
TINY = {"widths": [16, 16, 8], "blocks": [1, 1, 1], "heads": [2, 2, 2]}


def save_tiny(folder: Path, kind: str = "mar", **changes: object) -> Path:
    progress = Progress(size="digits", fingerprint="0" * 64, position=1, steps=1)
    model = tiny_model(kind, **changes)
    save_checkpoint(folder, model=model, optimizer={}, progress=progress)
    return folder


def save_images(folder: Path, *, size: int = 4, classes: int = 4, count: int = 11) -> Path:
    pixels = random_images(count, size=size).permute(0, 2, 3, 1).numpy()
    write_prepared(
        folder,
        dataset=folder.name,
        source="random numbers",
        preprocessing="none",
        resolution=size,
        class_names=[f"kind {i}" for i in range(classes)],
        splits={"validation": [(image, i % classes) for i, image in enumerate(pixels)]},
    )
    return folder


@dataclass(frozen=True)
class Workplace:
    folder: Path
    model: Path
    data: Path
    params: Path

    def run(self, command: str, *arguments: object) -> str:
        """Output of a command; raises what it raises."""
        words = [command, "--params", self.params, *arguments]
        if "--model" not in arguments:
            words += ["--model", self.model]
        done = CliRunner().invoke(app, [str(word) for word in words])
        if done.exception is not None:
            raise done.exception
        return done.output


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder = tmp_path_factory.mktemp("a workplace")
    content = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    content["models"]["digits"].update(
        TINY, patch_sizes=list(KINDS["mar"]["patch_sizes"]), num_classes=4
    )
    content["sampling"]["digits"]["iterations"] = [4, 4]
    params = folder / "params.yaml"
    params.write_text(yaml.safe_dump(content))
    return Workplace(
        folder, save_tiny(folder / "model"), save_images(folder / "data" / "tiny"), params
    )
