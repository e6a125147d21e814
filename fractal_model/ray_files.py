"""Whether a cluster's machines see the files that its workers will read.

Decided here: each machine that a worker may run on is asked before the work begins, because a
worker that lacks a file would end hours of work with a message that does not say where it ran.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fractal_model.common.errors import FractalError


def require_files(files: Sequence[Path], resource: str) -> None:
    """`files` are absolute; asked are machines that offer the resource, CPU or GPU, of the cluster
    that is connected. FractalError: one of them lacks a file."""
    nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get(resource)]
    asked = [_missing_on(node["NodeID"], files) for node in nodes if files]
    lacking: list[tuple[str, str]] = []
    for answer in asked:
        try:
            machine, missing = ray.get(answer)
        except RayError:
            continue  # a machine that is lost meanwhile runs no worker either
        lacking += [(machine, file) for file in missing]
    if lacking:
        machine, file = lacking[0]
        others = len(lacking) - 1
        more = f", and {others} more are missing like it" if others else ""
        raise FractalError(
            f"the machine {machine} of the Ray cluster does not see {file}{more}: give all its "
            f"machines the same files at the same paths, on a shared file system for example, or "
            f"unset RAY_ADDRESS to run on this machine alone"
        )


def _missing_on(node: str, files: Sequence[Path]) -> ray.ObjectRef:
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return _missing.options(scheduling_strategy=there).remote([str(file) for file in files])


@ray.remote(num_cpus=0, max_retries=0)
def _missing(files: list[str]) -> tuple[str, list[str]]:
    """On a machine of the cluster: its name, and which of the files are not there."""
    return socket.gethostname(), [file for file in files if not Path(file).exists()]
