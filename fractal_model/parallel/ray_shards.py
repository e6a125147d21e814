"""Ray's adapter for preparing a data set: its shards are built by Ray Data, over a cluster.

Decided here: the cluster's machines must see the source and the data folder at the same paths. What
goes wrong there comes back as a value, because Ray keeps only an exception's traceback as text.
"""

from __future__ import annotations

from dataclasses import replace

import ray
from ray.exceptions import RayError

from fractal_model.common.errors import FractalError, last_line, one_line
from fractal_model.data.shard_job import ShardJob, build_row, to_row
from fractal_model.parallel.ray_cluster import ray_cluster


def over_cluster(jobs: list[ShardJob]) -> None:
    """Build the shards on the cluster in RAY_ADDRESS. FractalError: one could not be built."""
    rows = [to_row(replace(job, parent=0)) for job in jobs]
    with ray_cluster(cpus=1):
        ray.data.DataContext.get_current().enable_progress_bars = False
        shards = ray.data.from_items(rows, override_num_blocks=len(rows)).map(_build)
        try:
            for shard in shards.iter_rows():
                if shard["error"]:
                    raise FractalError(shard["error"])
        except RayError as error:
            raise _failed(last_line(error)) from error


def _build(row: dict[str, str | int]) -> dict[str, str]:
    """On the cluster: build a shard, and return why it could not be built."""
    try:
        build_row(row)
    except FractalError as error:
        return {"error": str(error)}
    except Exception as error:
        return {"error": str(_failed(f"{type(error).__name__}: {one_line(error)}"))}
    return {"error": ""}


def _failed(reason: str) -> FractalError:
    return FractalError(
        f"the cluster could not build every shard ({reason}): check that its machines see the "
        f"source and the data folder, and run the same command to go on"
    )
