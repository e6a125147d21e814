"""What a person gets wrong ends with one line and a non-zero exit code, nothing lost."""

from __future__ import annotations

import shutil

import pytest

from flows import evaluate, train
from fractal_model.errors import FractalError
from fractal_model.tracking import registry, store
from fractal_model.training.checkpoint import load_checkpoint
from tests.flows.conftest import make_project, small_params


@pytest.fixture
def error_line(capsys):
    """The one line that a failing command leaves on standard error."""

    def run(project, main, *arguments) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            project.run(main, *arguments)
        shown = capsys.readouterr()
        assert stopped.value.code == 1
        assert shown.err.startswith("error: ")
        assert shown.err.count("\n") == 1, shown.err
        assert shown.out == ""
        return shown.err

    return run


def test_missing_data_set(error_line, tmp_path):
    project = make_project(tmp_path / "empty", small_params())
    line = error_line(project, train.main)
    assert "digits" in line
    assert "dvc repro" in line


def test_misspelt_key(error_line, tmp_path):
    content = small_params()
    content["training"]["digits"]["epoch"] = content["training"]["digits"].pop("epochs")
    project = make_project(tmp_path / "misspelt", content)
    line = error_line(project, train.main)
    assert "training.digits.epoch" in line
    assert "epochs" in line


def test_unknown_size(error_line, project):
    line = error_line(project, evaluate.main, "--size", "mar-xl")
    assert "mar-xl" in line
    assert "digits" in line


def test_nothing_registered(error_line, project, tmp_path):
    other = make_project(tmp_path / "fresh", small_params())
    (other.folder / "data").symlink_to(project.folder / "data")
    line = error_line(other, evaluate.main)
    assert "fractal-digits@candidate" in line
    assert "flows.train" in line


@pytest.mark.parametrize("damage", ["flipped", "truncated", "no marker"])
def test_damaged_registered_checkpoint(project, tmp_path, damage):
    """The registry's own copy is damaged; the evaluation says so and logs nothing."""
    store.connect(project.outputs)
    folder = tmp_path / "checkpoint"
    shutil.copytree(registry.resolve("digits").checkpoint, folder)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
    elif damage == "truncated":
        weights.write_bytes(content[:-100])
    else:
        (folder / "COMPLETE").unlink()
    expected = "COMPLETE" if damage == "no marker" else "model.safetensors"
    with pytest.raises(FractalError, match=expected) as caught:
        load_checkpoint(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
