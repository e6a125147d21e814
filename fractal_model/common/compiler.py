"""Find the compilers that torch.compile and Triton need, in the places where they search.

Decided here: importing this package does not import torch's compiler, which takes a second and
77 MB of each process. Processes that compile import it, and those that train (torch's optimisers
do).
"""

import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fractal_model.common.errors import FractalError

_Function = TypeVar("_Function", bound=Callable[..., object])
_constant_functions: list[Callable[..., object]] = []


def constant_in_compiled_code(function: _Function) -> _Function:
    """Decorator: compiled code has the value that the function returned during compilation."""
    _constant_functions.append(function)  # torch's own decorator would import its compiler.
    return function


def has_compiler() -> bool:
    """True if torch.compile finds a C++ compiler: the one in $CXX, or else the system's."""
    return shutil.which(_cpp_compiler()) is not None


def can_build_triton_kernels() -> bool:
    """True if Triton can build the code that launches GPU kernels. Triton needs the header Python.h
    and a C compiler: the program named by $CC, or gcc or clang if $CC is not set."""
    from_environment = os.environ.get("CC")
    names = ["gcc", "clang"] if from_environment is None else [from_environment]
    header = Path(sysconfig.get_path("include"), "Python.h")
    return header.exists() and any(shutil.which(name) for name in names)


def prepare_compiler() -> None:
    """Tell torch.compile what it needs to know of this package. FractalError: it finds no C++
    compiler."""
    if not has_compiler():
        compiler = _cpp_compiler() or "'' (CXX is empty)"
        raise FractalError(
            f"compile is on and {compiler} is not on the PATH: install a C++ compiler, set CXX to "
            f"the name of one, or turn compile off"
        )
    import torch  # Commands that only ask for a compiler must start fast.

    for function in _constant_functions:
        torch.compiler.assume_constant_result(function)


def _cpp_compiler() -> str:
    """Name of the C++ compiler: the first word of $CXX or, by default, g++ (clang++ on macOS)."""
    command = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    return next(iter(shlex.split(command)), command)
