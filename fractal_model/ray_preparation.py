"""Ray's adapter for preparing a data set: its shards are built by Ray Data, over a cluster.

The cluster's machines must see the source and the data folder at the same paths.
"""

from __future__ import annotations

from dataclasses import replace

import ray
from ray.exceptions import RayError

from fractal_model.data.shard_job import ShardJob, build_row, to_row
from fractal_model.errors import FractalError, one_line
from fractal_model.ray_cluster import ray_cluster


def over_cluster(jobs: list[ShardJob]) -> None:
    """Builds the shards on the cluster in RAY_ADDRESS. FractalError: one could not be built."""
    rows = [to_row(replace(job, parent=0)) for job in jobs]
    with ray_cluster(cpus=1):
        ray.data.DataContext.get_current().enable_progress_bars = False
        try:
            ray.data.from_items(rows, override_num_blocks=len(rows)).map(build_row).materialize()
        except RayError as error:
            raise FractalError(
                f"the cluster could not build every shard ({one_line(error)}): check that its "
                f"machines see the source and the data folder, and run the same command to go on"
            ) from error
