"""The Ray cluster that a command runs on: the one in RAY_ADDRESS, else one of our own.

Decided here: our own listens on loopback alone, asks for a token, and is closed only by the process
that started it. Ray's own messages stay in its log folder; a person reads one line.
"""

import logging
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from fractal_model.common.errors import FractalError, one_line

_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


@contextmanager
def ray_cluster(cpus: int) -> Iterator[None]:
    """Connect to Ray for the block; a local instance offers `cpus` logical CPUs."""
    if ray.is_initialized():
        yield
        return
    if address := os.environ.get("RAY_ADDRESS"):
        _connect(address)
    else:
        # "local": without it Ray would join any cluster that it finds running on this machine.
        # Ray starts some workers through a shell without quoting the interpreter's path, so that a
        # space in it would keep them from starting.
        quoted = shlex.quote(sys.executable)
        environment = {} if quoted == sys.executable else {"py_executable": quoted}
        ray.init("local", num_cpus=cpus, include_dashboard=False, runtime_env=environment, **_QUIET)
    try:
        yield
    finally:
        ray.shutdown()  # of a cluster that was there before, this only disconnects


def _connect(address: str) -> None:
    if address.startswith(("http://", "https://")):
        raise FractalError(
            f"RAY_ADDRESS={address} takes jobs, which only training is: unset it to run on this "
            f"machine, or give the cluster's own address, such as HOST:6379"
        )
    try:
        if ":" in address:  # Ray itself would try for minutes
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(**_QUIET)
    except (OSError, RuntimeError, ValueError) as error:
        raise FractalError(
            f"the Ray cluster RAY_ADDRESS={address} does not answer ({one_line(error)}): start it, "
            f"or unset RAY_ADDRESS to run on this machine alone"
        ) from error
