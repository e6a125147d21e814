"""The compilers that compiled code is built with, looked for where torch and Triton look."""

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from fractal_model.common.errors import FractalError


def has_compiler() -> bool:
    """True if torch.compile finds a C++ compiler: $CXX, or the system's."""
    return shutil.which(_cpp_compiler()) is not None


def can_build_triton_kernels() -> bool:
    """True if Triton can build what starts its kernels: with a C compiler ($CC, a program alone
    without arguments, or gcc or clang) and Python's header."""
    named = os.environ.get("CC")
    names = ["gcc", "clang"] if named is None else [named]
    header = Path(sysconfig.get_path("include"), "Python.h")
    return header.exists() and any(shutil.which(name) for name in names)


def require_compiler() -> None:
    """FractalError: there is no C++ compiler."""
    if not has_compiler():
        wanted = _cpp_compiler() or "what CXX names, nothing,"
        raise FractalError(
            f"compile is on and {wanted} is not on the PATH: install a C++ compiler, name one in "
            f"CXX, or turn compile off"
        )


def _cpp_compiler() -> str:
    """The compiler's program, without the arguments that CXX may hold."""
    named = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    return next(iter(shlex.split(named)), named)
