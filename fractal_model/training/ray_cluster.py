"""The Ray cluster that a command runs on: the one in RAY_ADDRESS, else one of our own.

Decided here: our own listens on loopback alone, asks for a token, and is closed only by who
started it. Ray's own messages stay in its log folder; what a person needs comes as one line.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ray_cluster(cpus: int) -> Iterator[None]:
    """Connected to Ray within the block; a local instance offers `cpus` logical CPUs."""
    if not os.environ.get("RAY_ADDRESS"):
        # Ray reads these when it is imported. The first makes the node's address 127.0.0.1 (its
        # name speaks of systems where that is the default); the last keeps Ray from warning that
        # workers without a GPU see all of them.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        ray.init(num_cpus=cpus, include_dashboard=False, **quiet)
    try:
        yield
    finally:
        ray.shutdown()  # of a cluster that was there before, this only disconnects
