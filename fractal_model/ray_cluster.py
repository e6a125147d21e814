"""The Ray cluster that a command runs on: the one in RAY_ADDRESS, else one of our own.

Decided here: our own listens on loopback alone, asks for a token, and is closed only by who
started it. Ray's own messages stay in its log folder; what a person needs comes as one line.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import ray


@contextmanager
def ray_cluster(cpus: int) -> Iterator[None]:
    """Connected to Ray within the block; a local instance offers `cpus` logical CPUs."""
    if ray.is_initialized():
        yield
        return
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        ray.init(num_cpus=cpus, include_dashboard=False, runtime_env=_quoted_interpreter(), **quiet)
    try:
        yield
    finally:
        ray.shutdown()  # of a cluster that was there before, this only disconnects


def _quoted_interpreter() -> dict[str, str]:
    """Ray starts some workers through a shell without quoting the interpreter's path, so that a
    space in it would keep them from starting."""
    quoted = shlex.quote(sys.executable)
    return {} if quoted == sys.executable else {"py_executable": quoted}
