"""The Ray cluster that a command runs on: the one in RAY_ADDRESS, or else a local one.

Decided here: a local cluster listens on loopback alone and refuses clients without its token. The
process that started it closes it. Ray's messages go to log files. Users see errors on one line.
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
from fractal_model.common.plurals import count_of

_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


@contextmanager
def ray_cluster(cpus: int) -> Iterator[None]:
    """Connect to the Ray cluster in RAY_ADDRESS, or else to a new local one with `cpus` logical
    CPUs, during the `with` block. FractalError: the cluster in RAY_ADDRESS does not answer,
    RAY_ADDRESS is an http address, which takes only jobs, or the local cluster does not start."""
    if ray.is_initialized():
        yield
        return
    if address := os.environ.get("RAY_ADDRESS"):
        _connect(address)
    else:
        _start(cpus)
    try:
        yield
    finally:
        ray.shutdown()  # For a cluster that ran before, this only disconnects.


def _start(cpus: int) -> None:
    # Without "local" Ray joins any cluster that runs on this machine. The interpreter is quoted
    # because Ray starts some workers through a shell, where a space in the path is an error.
    quoted = shlex.quote(sys.executable)
    environment = {} if quoted == sys.executable else {"py_executable": quoted}
    try:
        ray.init("local", num_cpus=cpus, include_dashboard=False, runtime_env=environment, **_QUIET)
    except Exception as error:  # Ray has no narrower class for processes that start too slowly.
        raise FractalError(
            f"Ray did not start on this machine ({one_line(error)}): its load is "
            f"{os.getloadavg()[0]:.0f} on {count_of(os.cpu_count() or 1, 'CPU')}; stop other "
            f"programs, or free memory and space in /tmp, and run the same command again"
        ) from error


def _connect(address: str) -> None:
    if address.startswith(("http://", "https://")):
        raise FractalError(
            f"RAY_ADDRESS={address} takes only jobs, and this command is not a job: unset it to "
            f"run on this machine, or give the cluster's own address, such as HOST:6379"
        )
    try:
        if ":" in address:  # Test the port first, because Ray would try for minutes.
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(**_QUIET)
    except (OSError, RuntimeError, ValueError) as error:
        raise FractalError(
            f"the Ray cluster RAY_ADDRESS={address} does not answer ({one_line(error)}): start it, "
            f"or unset RAY_ADDRESS to run on this machine alone"
        ) from error
