"""A person's mistake ends with one line and a non-zero exit code, and nothing is lost."""

from __future__ import annotations

import pytest

from flows import evaluate, train
from fractal_model.common.locks import hold_lock
from fractal_model.config.params import load_params
from fractal_model.tracking import registry, store
from fractal_model.training import launch
from tests.support.params import small_params
from tests.support.projects import Project, make_project


def test_a_missing_data_set_is_named(error_line, tmp_path):
    project = make_project(tmp_path / "empty", small_params())
    line = error_line(project, train.main)
    assert "digits" in line
    assert "dvc repro" in line


def test_a_misspelt_key_is_named(error_line, tmp_path):
    content = small_params()
    content["training"]["digits"]["epoch"] = content["training"]["digits"].pop("epochs")
    project = make_project(tmp_path / "misspelt", content)
    line = error_line(project, train.main)
    assert "training.digits.epoch" in line
    assert "epochs" in line


def test_an_unknown_size_is_named(error_line, project):
    line = error_line(project, evaluate.main, "--size", "mar-xl")
    assert "size 'mar-xl' is unknown, did you mean 'mar-l'?" in line


def test_a_server_that_does_not_answer_is_named(error_line, project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for main in (train.main, evaluate.main):
        line = error_line(project, main)
        assert "http://127.0.0.1:9 does not answer" in line
        assert "MLFLOW_TRACKING_URI" in line


def test_an_empty_registry_says_how_to_train(error_line, project, tmp_path):
    other = make_project(tmp_path / "fresh", small_params())
    (other.folder / "data").symlink_to(project.folder / "data")
    line = error_line(other, evaluate.main)
    assert "fractal-digits@candidate" in line
    assert "fractal train" in line


@pytest.mark.parametrize("damage", ["flipped", "truncated", "no marker"])
def test_a_damaged_registered_checkpoint_is_named(error_line, project, damage):
    """The evaluation names the damaged file before it logs anything."""
    store.connect(project.outputs)
    folder = registry.resolve("digits").checkpoint
    file = folder / ("COMPLETE" if damage == "no marker" else "model.safetensors")
    original = file.read_bytes()
    try:
        if damage == "flipped":
            file.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        elif damage == "truncated":
            file.write_bytes(original[:-100])
        else:
            file.unlink()
        line = error_line(project, evaluate.main)
    finally:
        file.write_bytes(original)
    assert file.name in line
    assert str(folder) in line


def test_a_version_without_files_is_named(error_line, project, tmp_path):
    store.connect(project.outputs)
    folder = registry.resolve("digits").checkpoint.parents[1]
    folder.rename(tmp_path / "elsewhere")
    try:
        line = error_line(project, evaluate.main)
    finally:
        (tmp_path / "elsewhere").rename(folder)
    assert "models:/fractal-digits/1" in line


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"patch_sizes": [16, 2, 1]}, ["image size 16", "digits has 8"]),
        ({"num_classes": 7}, ["num_classes 7", "digits has 10"]),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_refused(
    error_line, project, tmp_path, changes, expected
):
    content = small_params()
    content["models"]["digits"].update(changes)
    other = make_project(tmp_path / "unfit", content)
    (other.folder / "data").symlink_to(project.folder / "data")
    for main in (train.main, evaluate.main):
        line = error_line(other, main)
        assert all(part in line for part in expected)


def test_a_run_that_another_process_trains_is_refused(error_line, project, tmp_path):
    other = make_project(tmp_path / "locked", small_params())
    (other.folder / "data").symlink_to(project.folder / "data")
    params = load_params(other.params)
    size, manifest = launch.load_size_and_manifest(params, "digits")
    with hold_lock(
        launch.lock_file(params.paths.outputs, "digits", launch.run_fingerprint(size, manifest))
    ):
        line = error_line(other, train.main)
    assert "another process" in line


def test_a_folder_as_settings_file_is_refused(error_line, project, tmp_path):
    (tmp_path / "params.yaml").mkdir()
    line = error_line(Project(tmp_path), train.main)
    assert "cannot be read" in line
