"""`fractal init` writes a project folder and overwrites nothing."""

from __future__ import annotations

import subprocess

import pytest
import yaml

from fractal_model.common.errors import FractalError
from fractal_model.config.params import load_params
from fractal_model.data.project_folder import stages_of_project, write_project
from fractal_model.data.sources.registered import read_registered
from tests.support import REPOSITORY

STAGES = (REPOSITORY / "dvc.yaml").read_text()


def test_a_project_has_settings_and_data_stages(tmp_path):
    folder = tmp_path / "a project"
    assert write_project(folder)
    assert load_params(folder / "params.yaml").paths.data == folder / "data"
    assert read_registered(folder / "data") == {}
    assert {"digits", "prepare"} <= set(yaml.safe_load((folder / "dvc.yaml").read_text())["stages"])
    assert "no_scm = True" in (folder / ".dvc" / "config").read_text()


def test_the_stages_depend_on_data_and_not_on_code():
    before, after = yaml.safe_load(STAGES), yaml.safe_load(stages_of_project(STAGES))
    assert set(after["stages"]) == set(before["stages"])
    for name, stage in after["stages"].items():
        old = before["stages"][name]
        work, old = stage.get("do", stage), old.get("do", old)
        kept = [each for each in old.get("deps", []) if "fractal_model/" not in str(each)]
        assert work.get("deps", []) == [each for each in kept if "flows/" not in str(each)]
        assert {**work, "deps": 0} == {**old, "deps": 0}
    assert "fractal_model/" not in stages_of_project(STAGES)


@pytest.mark.parametrize("place", ["", "inside"])
def test_a_project_in_a_git_repository_uses_git(tmp_path, place):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    write_project(tmp_path / place)
    assert "no_scm" not in (tmp_path / place / ".dvc" / "config").read_text()


def test_an_existing_file_is_not_overwritten(tmp_path):
    (tmp_path / "dvc.yaml").write_text("mine")
    with pytest.raises(FractalError, match=r"has dvc\.yaml already, which is not overwritten"):
        write_project(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["dvc.yaml"]


def test_a_link_is_not_written_through(tmp_path):
    (tmp_path / "params.yaml").symlink_to("elsewhere.yaml")
    with pytest.raises(FractalError, match=r"has params\.yaml already"):
        write_project(tmp_path)
    assert not (tmp_path / "elsewhere.yaml").exists()


def test_a_folder_that_cannot_be_written_stays_as_it_is(tmp_path):
    (tmp_path / "data").touch()
    with pytest.raises(FractalError, match=r"the folder .*/data cannot be made or written to"):
        write_project(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["data"]


def test_a_folder_that_git_ignores_is_refused(tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text("/outputs/\n")
    with pytest.raises(FractalError, match=r"outputs.*choose a folder that git does not ignore"):
        write_project(tmp_path / "outputs")
    assert not (tmp_path / "outputs/params.yaml").exists()


def test_without_dvc_a_project_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("fractal_model.data.project_folder.find_spec", lambda name: None)
    assert not write_project(tmp_path / "project")
    assert not (tmp_path / "project" / ".dvc").exists()
