"""Whether there is what compiled code is built with: looked for where torch and Triton look."""

from __future__ import annotations

import os
import shlex
import shutil
import sys

from fractal_model.errors import FractalError


def compiler_is_there() -> bool:
    """Whether torch.compile finds a C++ compiler: $CXX, or the one of the system."""
    return shutil.which(_cpp_compiler()) is not None


def c_compiler_is_there() -> bool:
    """Whether Triton finds a C compiler, with which it builds what starts its kernels: $CC, gcc or
    clang."""
    named = os.environ.get("CC")
    return any(shutil.which(name) for name in ([_program(named)] if named else ["gcc", "clang"]))


def require_compiler() -> None:
    """FractalError: there is none."""
    if not compiler_is_there():
        raise FractalError(
            f"compile is on and {_cpp_compiler()} is not on the PATH: install a C++ compiler, name "
            f"one in CXX, or turn compile off"
        )


def _cpp_compiler() -> str:
    named = os.environ.get("CXX")
    return _program(named) if named else "clang++" if sys.platform == "darwin" else "g++"


def _program(command: str) -> str:
    """Without its arguments."""
    return next(iter(shlex.split(command)), command)
