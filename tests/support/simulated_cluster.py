"""A Ray cluster of several simulated machines on this one, with a resource instead of GPUs."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ray.cluster_utils import Cluster

ACCELERATOR = "simulated_gpu"


@contextmanager
def machines(count: int, *, workers: int, on_head: int = 0) -> Iterator[tuple[Cluster, list]]:
    """Yield a cluster whose head has room for `on_head` workers, and `count` other nodes with
    room for `workers` each. RAY_ADDRESS is its address within the block."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"include_dashboard": False, **_node_settings(on_head)},
        shutdown_at_exit=False,  # it would set signal handlers, which threads cannot
    )
    atexit.register(cluster.shutdown)
    before = os.environ.get("RAY_ADDRESS")
    try:
        nodes = [add_machine(cluster, workers=workers) for _ in range(count)]
        os.environ["RAY_ADDRESS"] = cluster.address
        yield cluster, nodes
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        if before is not None:
            os.environ["RAY_ADDRESS"] = before
        cluster.shutdown()
        atexit.unregister(cluster.shutdown)


def add_machine(cluster: Cluster, *, workers: int) -> object:
    """Add a node with room for `workers`; `cluster.remove_node` removes it."""
    return cluster.add_node(**_node_settings(workers))


def _node_settings(workers: int) -> dict[str, object]:
    """Settings of a node with one accelerator and one CPU for each of `workers`."""
    return {
        "num_cpus": workers,
        "resources": {ACCELERATOR: workers} if workers else {},
        "node_ip_address": "127.0.0.1",
    }
