"""The notebooks run from top to bottom, and their outputs are what their text says."""

from __future__ import annotations

import os
import re

import pytest
from nbformat import NotebookNode

from flows import train
from fractal_model.cli import app
from fractal_model.tracking import registry, store
from tests.benchmarks.notebooks import SOURCES, run_notebook
from tests.support import REPOSITORY
from tests.support.params import small_params
from tests.support.projects import Project, make_project

pytestmark = [pytest.mark.pages, pytest.mark.timeout(1800), pytest.mark.xdist_group("notebooks")]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """A project whose champion is a small model of digits that was trained for a minute."""
    content = small_params()
    content["models"]["digits"].update(widths=[64, 32, 16])
    content["training"]["digits"].update(epochs=6, batch_size=32, ema_decays=[])
    project = make_project(tmp_path_factory.mktemp("notebooks") / "project", content)
    for words in (("data", "prepare", "digits"), ("data", "reference", "digits")):
        project.run(app.main, *words)
    project.run(train.main)
    store.connect(project.outputs)
    version = registry.aliased_version("digits", registry.CANDIDATE)
    project.run(app.main, "models", "promote", "digits", str(version), "--because", "the only one")
    return project


def run(name: str, project: Project, monkeypatch) -> NotebookNode:
    (source,) = (each for each in SOURCES if each.stem == name)
    monkeypatch.setenv("PREFECT_HOME", str(project.folder / "prefect"))
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "ERROR")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.delenv("FRACTAL_PARAMS", raising=False)
    for variable in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(variable)
    return run_notebook(source, project.folder)


def text_of(notebook: NotebookNode) -> str:
    outputs = [each for cell in notebook.cells for each in cell.get("outputs", [])]
    text = "\n".join(each["text"] for each in outputs if each["output_type"] == "stream")
    return re.sub(r"\x1b\[[0-9;]*m", "", text)  # Commands in a notebook see a terminal.


def pictures_of(notebook: NotebookNode) -> int:
    outputs = [each for cell in notebook.cells for each in cell.get("outputs", [])]
    return sum("image/png" in each.get("data", {}) for each in outputs)


def test_every_notebook_is_tested():
    assert [source.stem for source in SOURCES] == [
        "read_the_numbers",
        "train_on_my_pictures",
        "what_is_a_fractal_model",
    ]


def test_a_model_is_taken_apart(project, monkeypatch):
    notebook = run("what_is_a_fractal_model", project, monkeypatch)
    text = text_of(notebook)
    assert "level 0 (mar): a patch of 8 × 8 px is 16 patches of 2 px" in text
    assert "4 steps of the first level" in text
    assert float(re.search(r"([\d.]+) bits per dimension; a pixel", text)[1]) < 8
    assert pictures_of(notebook) == 3


def test_the_numbers_are_read(project, monkeypatch):
    text = text_of(run("read_the_numbers", project, monkeypatch))
    assert "bits/dim of 40 images" in text and "exact: False" in text
    samples = re.findall(r"FID of .{3} samples: +[\d.]+ ± [\d.]+", text)
    assert len(samples) == 2
    real = [float(value) for value in re.findall(r"real images: +(-?[\d.]+)", text)]
    assert len(real) == 3 and real[0] > real[1] > 1 > abs(real[2])
    assert text.count("precision") == 2


def test_pictures_become_a_model(project, monkeypatch):
    notebook = run("train_on_my_pictures", project, monkeypatch)
    text = text_of(notebook)
    assert "{'one': 182, 'seven': 179, 'zero': 178}" in text
    assert "registered fractal-mine version 1" in text
    assert "('one', 'seven', 'zero')" in text and pictures_of(notebook) == 1
