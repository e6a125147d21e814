"""Several machines on one: a Ray cluster of real raylets with a resource in place of GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ray.cluster_utils import Cluster

ACCELERATOR = "simulated_gpu"


@contextmanager
def machines(count: int, *, each: int) -> Iterator[tuple[Cluster, list]]:
    """A head without workers and `count` nodes for `each` workers; RAY_ADDRESS names it."""
    on_loopback = {"node_ip_address": "127.0.0.1"}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, **on_loopback},
    )
    before = os.environ.get("RAY_ADDRESS")
    try:
        nodes = [
            cluster.add_node(num_cpus=each, resources={ACCELERATOR: each}, **on_loopback)
            for _ in range(count)
        ]
        os.environ["RAY_ADDRESS"] = cluster.address
        yield cluster, nodes
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        if before is not None:
            os.environ["RAY_ADDRESS"] = before
        cluster.shutdown()
