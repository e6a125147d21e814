"""Ray's adapter for preparing a data set: its shards are built by Ray Data, over a cluster.

The cluster's machines must see the source and the data folder at the same paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import ray
from ray.exceptions import RayError

from fractal_model.data.shard_job import ShardJob, build_row, to_row
from fractal_model.errors import FractalError
from fractal_model.ray_cluster import ray_cluster

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def over_cluster(jobs: list[ShardJob]) -> None:
    """Builds the shards on the cluster in RAY_ADDRESS. FractalError: one could not be built."""
    rows = [to_row(replace(job, parent=0)) for job in jobs]
    with ray_cluster(cpus=1):
        ray.data.DataContext.get_current().enable_progress_bars = False
        try:
            ray.data.from_items(rows, override_num_blocks=len(rows)).map(build_row).materialize()
        except RayError as error:
            raise _mistake(error) from error


def _mistake(error: RayError) -> FractalError:
    """What went wrong on the cluster's machine: Ray's own text is that machine's traceback."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, FractalError):
            return FractalError(str(cause))
    lines = _COLOURS.sub("", str(causes[-1])).strip().splitlines()
    reason = lines[-1].strip() if lines else type(causes[-1]).__name__
    return FractalError(
        f"the cluster could not build every shard ({reason}): check that its machines see the "
        f"source and the data folder, and run the same command to go on"
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it, and so on: Ray keeps it as `cause`, Python as `__cause__`."""
    seen: list[BaseException] = []
    following: BaseException | None = error
    while isinstance(following, BaseException) and following not in seen:
        yield following
        seen.append(following)
        following = getattr(following, "cause", None) or following.__cause__
