"""Flows as commands: `fractal train`, `fractal evaluate --size`, --set and --json."""

from __future__ import annotations

import json

import pytest

from flows import train
from fractal_model.cli import app
from fractal_model.common.errors import FractalError


def test_a_set_value_that_the_file_has_too_is_the_same_run(project, capsys):
    """The fingerprint is the same, so the version is found in the registry."""
    words = ("train", "--size", "digits", "--set", "training.digits.epochs=3", "--json")
    capsys.readouterr()
    project.run(app.main, *words)
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"version": "1"}
    assert "version 1 has the same settings and data" in printed.err


def test_a_flow_takes_settings(project, prefect):
    same = ["training.digits.epochs=3"]
    assert train.train_fractal(set=same, params_file=project.params) == "1"
    with pytest.raises(FractalError, match="did you mean 'epochs'"):
        train.train_fractal(set=["training.digits.epoch=3"], params_file=project.params)


def test_a_size_alone_is_evaluated_by_the_flow(project, capsys):
    capsys.readouterr()
    project.run(app.main, "evaluate", "--size", "digits", "--json", "--quiet")
    printed = capsys.readouterr()
    assert json.loads(printed.out)["metrics"]["fid"] > 0
    assert "reused" not in printed.err


@pytest.mark.parametrize("command", ["train", "evaluate", "sweep", "nightly", "prepare"])
def test_a_wrong_setting_names_the_option(error_line, project, command):
    size = () if command in ("nightly", "prepare") else ("--size", "digits")
    line = error_line(project, app.main, command, *size, "--set", "nightly.budget_hour=2")
    assert "did you mean 'budget_hours'? (--set)" in line
