"""The lines of Python in the README and in a model's card work as they stand there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from PIL import Image

from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.serving import ServingConfig
from fractal_model.tracking import registration, store
from tests.support import REPOSITORY
from tests.support.tiny_files import save_tiny

PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
NOT_NEEDED = ("mlflow", "ray", "prefect", "dvc", "pandas", "datasets", "pyarrow", "torchvision")
"""Packages that nobody needs who draws images with a model in a folder."""
BLOCKED = "import sys; sys.modules.update(dict.fromkeys({packages!r}))\n"


def python_blocks(file: Path) -> list[str]:
    return PYTHON.findall(file.read_text())


def test_the_lines_of_a_card_work_without_the_packages_of_training(exported, elsewhere):
    (lines,) = python_blocks(exported / "README.md")
    assert "FractalPipeline" in lines and "FOLDER or USER/NAME" in lines
    lines = lines.replace("FOLDER or USER/NAME", str(exported))
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(packages=NOT_NEEDED) + lines],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with Image.open("image.png") as image:
        assert image.size == (4, 4)
    assert [file.name for file in elsewhere.iterdir()] == ["image.png"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder in whose store a tiny model of ten classes is the champion of digits."""
    folder = tmp_path_factory.mktemp("project")
    sampling = SamplingConfig(guidance=3.0, iterations=(3, 2))
    serving = ServingConfig(weights="model", sampling=sampling)
    checkpoint = save_tiny(folder / "checkpoint", num_classes=10)
    shutil.copy(REPOSITORY / "params.yaml", folder)
    outputs = folder / "outputs"
    store.connect(outputs)
    with mlflow.start_run(experiment_id=store.get_or_create_experiment("digits", outputs)):
        registration.register("digits", checkpoint, serving=serving, tags={})
    mlflow.MlflowClient().set_registered_model_alias("fractal-digits", "champion", "1")
    return folder


@pytest.mark.parametrize("document", ["README.md", "docs/models.md"])
def test_the_lines_of_documents_work_in_a_project(project, monkeypatch, document):
    monkeypatch.chdir(project)
    (project / "seven.png").unlink(missing_ok=True)
    names: dict = {}
    for lines in python_blocks(REPOSITORY / document):
        exec(compile(lines, document, "exec"), names)
    assert names["pipe"].sampling.guidance == 3.0  # That of the version, not of params.yaml.
    assert len(names["images"]) == 8 and names["images"][0].size == (4, 4)
    assert (project / "seven.png").is_file()
