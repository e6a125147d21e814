"""A tiny model with its own sampling settings, and an empty folder to work in."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fractal_model.cli.app import app
from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.serving import ServingConfig
from fractal_model.model.pretrained import export_folder
from fractal_model.pipeline.fractal_pipeline import FractalPipeline
from tests.support import tiny_model

NAMES = ("cat", "dog", "cow", "ant")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_model("mar")
    model.config = model.config.model_copy(update={"class_names": NAMES})
    sampling = SamplingConfig(guidance=2.0, logit_scale=1.1, iterations=(3, 2))
    model.serving = ServingConfig(weights="ema-0.9", sampling=sampling)
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_folder(model, folder)
    return folder


@pytest.fixture
def pipe(exported: Path) -> FractalPipeline:
    pipeline = FractalPipeline.from_pretrained(exported, device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, without params.yaml."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fractal(exported: Path, elsewhere: Path):
    """A function that runs a command with the exported model, and returns what it prints."""

    def run(command: str, *arguments: object) -> str:
        words = [command, "--model", exported, *arguments]
        done = CliRunner().invoke(app, [str(word) for word in words])
        if done.exception is not None:
            raise done.exception
        return done.output

    return run
