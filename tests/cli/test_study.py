"""`fractal study`: wrong words end in one line, before anything is computed."""

from __future__ import annotations

import re
import shutil

import pytest
from typer.testing import CliRunner

from fractal_model.cli.app import app
from tests.support.params import SHIPPED


@pytest.fixture
def fail(tmp_path):
    """A function that runs the command in a new project and returns its error."""
    shutil.copy(SHIPPED, tmp_path / "params.yaml")
    studies = tmp_path / "docs" / "studies"
    studies.mkdir(parents=True)
    (studies / "mine.yaml").write_text("question: '?'\nsize: digits\nseeds: [0, 1, 2]\n")

    def run(*words: str) -> str:
        words = ("study", *words, "--params", str(tmp_path / "params.yaml"))
        done = CliRunner().invoke(app, words)
        assert done.exit_code != 0
        return str(done.exception) + done.output

    return run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("other",), "there is no study .*other.yaml: choose mine"),
        (("",), "it is empty"),
        (("mine", "--jobs", "0"), "greater than or equal to 1"),
        (("mine", "--set", "training.digits.epochs=1"), "with --set give another folder"),
        (("mine",), "no prepared data set at .*digits: build it with `dvc repro`"),
    ],
)
def test_mistakes_are_explained(fail, words, message):
    assert re.search(message, " ".join(fail(*words).split()))
