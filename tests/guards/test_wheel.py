"""The wheel: its content, and its commands where only the core is installed."""

from __future__ import annotations

import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fractal_model.cli.app import app
from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.serving import ServingConfig
from fractal_model.data.project_folder import write_project
from fractal_model.model.pretrained import export_folder
from tests.support import REPOSITORY, tiny_model
from tests.support.source_files import SOURCES
from tests.support.wheel import NOT_IN_THE_CORE, build_wheel, link_core, pip, run_python


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel) -> Path:
    """A folder in which the wheel is installed, without what it depends on."""
    pip("install", "--quiet", "--no-deps", "--target", wheel.parent / "installed", wheel)
    return wheel.parent / "installed"


@pytest.fixture(scope="module")
def core(installed) -> tuple[Path, Path]:
    """The wheel's folder, and one with the packages that its metadata ask for without an extra."""
    (metadata,) = installed.glob("*.dist-info/METADATA")
    needed = message_from_bytes(metadata.read_bytes()).get_all("Requires-Dist")
    links = installed.parent / "core"
    return installed, link_core(links, [text for text in needed if "extra ==" not in text])


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A tiny model that carries its sampling settings."""
    model = tiny_model("mar")
    sampling = SamplingConfig(guidance=2.0, logit_scale=1.1, iterations=(2, 2))
    model.serving = ServingConfig(weights="model", sampling=sampling)
    folder = tmp_path_factory.mktemp("models") / "exported"
    export_folder(model, folder)
    return folder


def test_the_wheel_has_the_package_and_nothing_beside_it(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == {"fractal_model"}
    inside = {
        f"fractal_model/{file}" if file.parts[0] == "flows" else str(file) for file in SOURCES
    }
    data = {
        f"fractal_model/{name}"
        for name in (
            "py.typed",
            "checkpoints/imagenet_classes.txt",
            "project/params.yaml",
            "project/dvc.yaml",
            "project/.gitignore",
            "project/.dvcignore",
            "reporting/templates/report.html",
            "reporting/reference_curves/digits.csv",
        )
    }
    assert inside | data <= names
    assert {name for name in names if name.endswith(".py")} == inside


def test_the_wheel_has_the_settings_of_the_checkout(installed):
    shipped = installed / "fractal_model" / "project" / "params.yaml"
    assert shipped.read_bytes() == (REPOSITORY / "params.yaml").read_bytes()


def test_the_core_has_no_library_of_an_extra(core, tmp_path):
    code = f"from importlib.util import find_spec; print(*filter(find_spec, {NOT_IN_THE_CORE}))"
    assert run_python("-c", code, cwd=tmp_path, path=core).stdout.split() == []


def test_the_core_prints_help(core, tmp_path):
    done = run_python("-m", "fractal_model", "--help", cwd=tmp_path, path=core)
    assert done.returncode == 0 and "sample" in done.stdout


def test_the_core_samples_the_pictures_of_the_checkout(core, exported, tmp_path):
    words = ["sample", "--model", str(exported), "--classes", "1,2", "--n", "2", "--out"]
    done = run_python("-m", "fractal_model", *words, "core.png", cwd=tmp_path, path=core)
    assert done.returncode == 0, done.stderr
    here = tmp_path / "checkout.png"
    assert CliRunner().invoke(app, [*words, str(here)]).exit_code == 0
    assert (tmp_path / "core.png").read_bytes() == here.read_bytes()


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("sample --model models:/fractal-digits@champion --out x.png", "track"),
        ("data prepare digits", "data"),
        ("services status", "serve"),
    ],
)
def test_a_missing_extra_ends_in_one_line(core, tmp_path, command, extra):
    write_project(tmp_path / "project")
    words = ("-m", "fractal_model", *command.split())
    done = run_python(*words, cwd=tmp_path / "project", path=core)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.endswith(f'not installed: pip install "fractal-model[{extra}]"\n')


@pytest.mark.slow
def test_a_new_project_prepares_data_without_a_checkout(installed, tmp_path):
    folder = tmp_path / "a project"
    words = ("-m", "fractal_model", "init", folder)
    done = run_python(*words, cwd=tmp_path, path=(installed,), isolated=False)
    assert done.returncode == 0, done.stderr
    words = ("-m", "dvc", "repro", "digits")
    done = run_python(*words, cwd=folder, path=(installed,), isolated=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "data" / "digits" / "manifest.json").is_file()
    again = run_python(*words, cwd=folder, path=(installed,), isolated=False)
    assert "didn't change, skipping" in again.stdout
