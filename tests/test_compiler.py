"""Compilers are found where torch and Triton find them."""

from __future__ import annotations

import pytest

from fractal_model.compiler import c_compiler_is_there, compiler_is_there, require_compiler
from fractal_model.errors import FractalError


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs programs, which are all that there are."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
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
    assert (c_compiler_is_there(), compiler_is_there()) == (c, cpp)


@pytest.mark.parametrize("named", ["mine", "mine -O1"])
def test_what_the_environment_names_counts_alone(installed, monkeypatch, named):
    monkeypatch.setenv("CC", named)
    monkeypatch.setenv("CXX", named)
    installed("gcc", "g++")
    assert not c_compiler_is_there() and not compiler_is_there()
    installed("mine")
    assert c_compiler_is_there() and compiler_is_there()


def test_without_one(installed, monkeypatch):
    with pytest.raises(FractalError, match=r"and g\+\+ is not on the PATH: install a C\+\+"):
        require_compiler()
    monkeypatch.setenv("CXX", "mine")
    with pytest.raises(FractalError, match=r"and mine is not on the PATH"):
        require_compiler()
