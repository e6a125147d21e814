"""Several machines on one: a Ray cluster of real raylets with a resource in place of GPUs."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ray.cluster_utils import Cluster

ACCELERATOR = "simulated_gpu"


@contextmanager
def machines(count: int, *, each: int, on_head: int = 0) -> Iterator[tuple[Cluster, list]]:
    """A head for `on_head` workers and `count` more nodes for `each`; RAY_ADDRESS names it."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"include_dashboard": False, **_room(on_head)},
        shutdown_at_exit=False,  # it sets signal handlers, which add_machine cannot in a thread
    )
    atexit.register(cluster.shutdown)
    before = os.environ.get("RAY_ADDRESS")
    try:
        nodes = [add_machine(cluster, each=each) for _ in range(count)]
        os.environ["RAY_ADDRESS"] = cluster.address
        yield cluster, nodes
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        if before is not None:
            os.environ["RAY_ADDRESS"] = before
        cluster.shutdown()
        atexit.unregister(cluster.shutdown)


def add_machine(cluster: Cluster, *, each: int) -> object:
    """A node for `each` workers; `cluster.remove_node` takes it away again."""
    return cluster.add_node(**_room(each))


def _room(workers: int) -> dict[str, object]:
    """A node's resources, with one accelerator and CPU for each of `workers`."""
    return {
        "num_cpus": workers,
        "resources": {ACCELERATOR: workers} if workers else {},
        "node_ip_address": "127.0.0.1",
    }
