"""Compilers are found where torch and Triton find them."""

from __future__ import annotations

import pytest

from fractal_model.common.compiler import can_build_triton_kernels, has_compiler, require_compiler
from fractal_model.common.errors import FractalError


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs programs, which are all that there are, beside Python's header."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / name))
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "Python.h").touch()
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)

    def install(*names: str) -> None:
        for name in names:
            (tmp_path / name).touch(mode=0o755)

    return install


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
def test_by_default(installed, names, c, cpp):
    installed(*names)
    assert (can_build_triton_kernels(), has_compiler()) == (c, cpp)


def test_what_the_environment_names_counts_alone(installed, monkeypatch):
    monkeypatch.setenv("CC", "mine")
    monkeypatch.setenv("CXX", "mine")
    installed("gcc", "g++")
    assert not can_build_triton_kernels() and not has_compiler()
    installed("mine")
    assert can_build_triton_kernels() and has_compiler()


@pytest.mark.parametrize(("named", "cpp"), [("mine -O1", True), ("", False)])
def test_a_cpp_compiler_may_have_arguments_a_c_compiler_none(installed, monkeypatch, named, cpp):
    monkeypatch.setenv("CC", named)
    monkeypatch.setenv("CXX", named)
    installed("mine", "gcc", "g++")
    assert (can_build_triton_kernels(), has_compiler()) == (False, cpp)


def test_triton_needs_the_header_of_python(installed, tmp_path):
    installed("gcc")
    (tmp_path / "include" / "Python.h").unlink()
    assert not can_build_triton_kernels()


def test_without_one(installed, monkeypatch):
    with pytest.raises(FractalError, match=r"and g\+\+ is not on the PATH: install a C\+\+"):
        require_compiler()
    monkeypatch.setenv("CXX", "mine")
    with pytest.raises(FractalError, match=r"and mine is not on the PATH"):
        require_compiler()
    monkeypatch.setenv("CXX", "")
    with pytest.raises(FractalError, match=r"CXX names, nothing, .* name one in CXX"):
        require_compiler()
