"""The compilers that torch and Triton use are found."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fractal_model.common.compiler import can_build_triton_kernels, has_compiler, prepare_compiler
from fractal_model.common.errors import FractalError


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that installs programs on an otherwise empty PATH; Python.h exists."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / name))
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "Python.h").touch()
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)

    def add_programs(*names: str) -> None:
        for name in names:
            (tmp_path / name).touch(mode=0o755)

    return add_programs


@pytest.mark.parametrize(
    ("names", "c", "cpp"),
    [
        ([], False, False),
        (["gcc"], True, False),
        (["clang"], True, False),
        (["g++"], False, True),
        (["clang++", "c++", "cc"], False, False),
    ],
)
def test_default_compilers_are_found_on_the_path(install, names, c, cpp):
    install(*names)
    assert (can_build_triton_kernels(), has_compiler()) == (c, cpp)


def test_a_compiler_named_in_the_environment_replaces_the_default(install, monkeypatch):
    monkeypatch.setenv("CC", "mine")
    monkeypatch.setenv("CXX", "mine")
    install("gcc", "g++")
    assert not can_build_triton_kernels() and not has_compiler()
    install("mine")
    assert can_build_triton_kernels() and has_compiler()


@pytest.mark.parametrize(("command", "cpp"), [("mine -O1", True), ("", False)])
def test_cxx_may_hold_arguments_and_cc_may_not(install, monkeypatch, command, cpp):
    monkeypatch.setenv("CC", command)
    monkeypatch.setenv("CXX", command)
    install("mine", "gcc", "g++")
    assert (can_build_triton_kernels(), has_compiler()) == (False, cpp)


def test_triton_needs_the_header_of_python(install, tmp_path):
    install("gcc")
    (tmp_path / "include" / "Python.h").unlink()
    assert not can_build_triton_kernels()


def test_a_missing_compiler_is_named_with_the_way_out(install, monkeypatch):
    with pytest.raises(FractalError, match=r"and g\+\+ is not on the PATH: install a C\+\+"):
        prepare_compiler()
    monkeypatch.setenv("CXX", "mine")
    with pytest.raises(FractalError, match=r"and mine is not on the PATH"):
        prepare_compiler()
    monkeypatch.setenv("CXX", "")
    with pytest.raises(FractalError, match=r"'' \(CXX is empty\) is not .* set CXX to"):
        prepare_compiler()


def test_the_library_is_imported_without_torchs_compiler():
    code = (
        "import sys; from fractal_model import FractalPipeline; "
        "import fractal_model.sampling.sampler, fractal_model.training.ray_train.worker; "
        "print('torch._dynamo' in sys.modules)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert process.stdout.split() == ["False"]
