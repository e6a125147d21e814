"""`fractal init`."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from fractal_model.cli.app import app
from fractal_model.common.errors import FractalError


def init(*words: str) -> list[str]:
    done = CliRunner().invoke(app, ["init", *words])
    if done.exception is not None:
        raise done.exception
    return [line.strip() for line in done.output.splitlines()]


def test_a_named_folder_and_the_next_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, *commands = init("a project")
    assert commands == ["cd 'a project'", "dvc repro"]
    assert (tmp_path / "a project" / "params.yaml").is_file()


def test_the_current_folder_is_taken_if_it_is_empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".venv").mkdir()
    assert init()[1] == "dvc repro"
    with pytest.raises(FractalError, match="is not empty: name the folder of the project"):
        init()


def test_without_dvc_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fractal_model.data.project_folder.find_spec", lambda name: None)
    assert init()[1:3] == ['pip install "fractal-model[all]"', "dvc init --no-scm"]
