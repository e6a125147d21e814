"""`fractal size new`: from a prepared data set to entries in params.yaml."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from fractal_model.cli.app import app
from fractal_model.cli.size import parse_budget
from fractal_model.common.errors import FractalError
from fractal_model.config.params import load_params
from tests.support.params import SHIPPED
from tests.support.tiny_files import save_images


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The folder of a project with the prepared data set `tiny`."""
    shutil.copy(SHIPPED, tmp_path / "params.yaml")
    save_images(tmp_path / "data" / "tiny", size=8, count=40, split="train")
    return tmp_path


def new(project: Path, *arguments: str) -> str:
    words = ["size", "new", *arguments, "--params", str(project / "params.yaml")]
    done = CliRunner().invoke(app, words)
    if done.exception is not None:
        raise done.exception
    return done.output


def test_a_size_is_tried_and_added(project):
    output = new(project, "pictures", "--dataset", "tiny", "--budget", "5m")
    size = load_params(project / "params.yaml").size("pictures")
    assert (size.model.image_size, size.model.num_classes) == (8, 4)
    assert f"epochs: {size.training.epochs}" in output
    assert "pictures: training takes " in output and "a trial step" in output
    assert "fractal train --size pictures" in output
    assert "note: without held-out images" in output


def test_a_dry_run_prints_the_entries_and_writes_nothing(project):
    before = (project / "params.yaml").read_bytes()
    words = ["pictures", "--dataset", "tiny", "--no-check", "--dry-run", "--flip"]
    done = CliRunner().invoke(
        app, ["size", "new", *words, "--params", str(project / "params.yaml")]
    )
    entries = yaml.safe_load(done.stdout)
    assert list(entries) == ["models", "training", "sampling", "evaluation"]
    assert entries["training"]["pictures"]["flip"] is True
    assert "reason" in done.stderr
    assert (project / "params.yaml").read_bytes() == before


def test_entries_go_to_a_file_of_their_own(project):
    before, out = (project / "params.yaml").read_bytes(), project / "new" / "entries.yaml"
    arguments = ("pictures", "--dataset", "tiny", "--no-check", "--out", str(out))
    output = new(project, *arguments)
    assert "training" in yaml.safe_load(out.read_text()) and str(out) in output.replace("\n", "")
    assert (project / "params.yaml").read_bytes() == before
    with pytest.raises(FractalError, match="exists already and is not overwritten"):
        new(project, *arguments)


def test_a_size_to_follow(project):
    new(project, "pictures", "--dataset", "tiny", "--no-check", "--like", "digits")
    params = load_params(project / "params.yaml")
    assert params.models["pictures"] == params.models["digits"].model_copy(
        update={"num_classes": 4}
    )
    assert params.training["pictures"].epochs == params.training["digits"].epochs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", "--dataset", "tiny"], "the size digits exists already: choose another name"),
        (["My Size", "--dataset", "tiny"], "'My Size' cannot be the name of a size: give up to"),
        (["x", "--dataset", "tiyn"], r"data/tiyn: .*, did you mean 'tiny'\?"),
        (["x", "--dataset", "roses"], "no prepared data set at .*roses: build it with `dvc repro`"),
        (["x", "--dataset", "held-out"], "train"),
        (["x", "--dataset", "tiny", "--like", "mar-64"], "mar-64 is for images of 64 px, those of"),
        (["x", "--dataset", "tiny", "--like", "mar-65"], "size 'mar-65' is unknown"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(project, arguments, message):
    save_images(project / "data" / "held-out", size=8)
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(FractalError, match=message):
        new(project, *arguments, "--no-check")
    assert (project / "params.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "seconds"), [("45m", 2700), ("2h", 7200), ("1.5d", 129_600), (" 1 m", 60)]
)
def test_a_budget_is_a_length_of_time(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "-1h", "0.5m", "400d", "2 weeks", "1e3h", "nan h"])
def test_a_budget_that_is_none_is_refused(text):
    with pytest.raises(typer.BadParameter, match="is no training time .*: give one such as 45m"):
        parse_budget(text)
