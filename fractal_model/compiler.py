"""Whether there is what compiled code is built with."""

from __future__ import annotations

import shutil

from fractal_model.errors import FractalError

_COMPILERS = ("g++", "clang++", "c++")


def compiler_is_there() -> bool:
    """Whether torch.compile, and Triton on a GPU, find a compiler on the PATH."""
    return any(shutil.which(name) for name in _COMPILERS)


def require_compiler() -> None:
    """FractalError: there is none."""
    if not compiler_is_there():
        raise FractalError(
            f"compile is on and none of {', '.join(_COMPILERS)} is on the PATH: install a C++ "
            f"compiler, or set compile to false in params.yaml"
        )
