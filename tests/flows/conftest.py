"""One small project folder for all tests of the flows: its own params.yaml, stores and data.

The path has a space in it, as users' paths do. Commands run as a person types them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from prefect.testing.utilities import prefect_test_harness

from flows import evaluate, train
from fractal_model.cli.app import app

REPOSITORY = Path(__file__).parents[2]


def small_params() -> dict:
    """The shipped settings, made small: seconds instead of minutes."""
    content = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    content["datasets"]["digits"].update(validation_images=40)
    content["metrics"]["statistics_images"] = {"digits": 30}
    content["models"]["digits"].update(
        widths=[16, 16, 8], blocks=[1, 1, 1], heads=[2, 2, 2], dropout=0.1
    )
    content["training"]["digits"].update(
        epochs=3,
        warmup_epochs=1,
        batch_size=100,
        images_per_worker=50,
        checkpoint_every_epochs=1,
        log_every_steps=4,
    )
    content["sampling"]["digits"].update(iterations=[4, 2])
    content["evaluation"]["digits"].update(
        likelihood_passes=2,
        samples_per_class=3,
        preview_per_class=2,
        kid_subset_size=10,
        kid_subsets=5,
        fid_resamples=5,
    )
    return content


@dataclass(frozen=True)
class Project:
    """A folder with a params.yaml, and how to run commands on it."""

    folder: Path

    @property
    def params(self) -> Path:
        return self.folder / "params.yaml"

    @property
    def outputs(self) -> Path:
        return self.folder / "outputs"

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_"))}
        return {**kept, "PREFECT_HOME": str(self.folder / "prefect")}

    def command(self, module: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", module, *arguments, "--params", str(self.params)]

    def run(self, main: Callable[[], None], *arguments: str) -> None:
        """A command's main function in this process, as if these arguments were typed."""
        argv, sys.argv = sys.argv, ["command", *arguments, "--params", str(self.params)]
        try:
            main()
        except SystemExit as stopped:
            if stopped.code:
                raise
        finally:
            sys.argv = argv


def make_project(folder: Path, content: dict) -> Project:
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    return Project(folder)


@pytest.fixture(scope="session")
def prefect() -> Iterator[None]:
    """A Prefect server of the tests' own, on a database of its own."""
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, prefect: None) -> Project:
    """Data prepared, reference extracted, one model trained and evaluated."""
    project = make_project(tmp_path_factory.mktemp("flows") / "a project", small_params())
    project.run(app.main, "data", "prepare", "digits")
    project.run(app.main, "data", "reference", "digits")
    project.run(train.main)
    project.run(evaluate.main)
    return project
