"""Prepare a data set on a Ray cluster: each shard is a task.

Decided here: all machines of the cluster must see the source and the data folder at the same paths.
Tasks are spread over the machines, because reading the source takes as long as decoding it.
"""

import os

import ray
from ray.exceptions import RayError, RayTaskError

from fractal_model.common.errors import FractalError, one_line
from fractal_model.data.shard_job import ShardJob, build_in_processes, build_shard
from fractal_model.parallel.ray_cluster import ray_cluster


def build_shards(jobs: list[ShardJob], processes: int) -> None:
    """Build the shards of a data set on the cluster in RAY_ADDRESS, or else with `processes`
    processes on this machine (0: one for each core). FractalError: a shard could not be built."""
    if os.environ.get("RAY_ADDRESS"):
        build_shards_on_cluster(jobs)
    else:
        build_in_processes(jobs, processes or os.cpu_count() or 1)


def build_shards_on_cluster(jobs: list[ShardJob]) -> None:
    """Build each shard as a task of the cluster in RAY_ADDRESS. FractalError: a task failed."""
    with ray_cluster(cpus=1):
        build = ray.remote(build_shard).options(scheduling_strategy="SPREAD")
        tasks = [build.remote(job) for job in jobs]
        try:
            while tasks:
                done, tasks = ray.wait(tasks)
                ray.get(done)
        except RayTaskError as error:
            if isinstance(error.cause, FractalError):
                raise FractalError(one_line(error.cause)) from error
            reason = f"{type(error.cause).__name__}: {one_line(error.cause)}"
            raise _unbuilt_shard_error(reason) from error
        except RayError as error:
            raise _unbuilt_shard_error(one_line(error)) from error
        finally:
            for task in tasks:
                ray.cancel(task, force=True)


def _unbuilt_shard_error(reason: str) -> FractalError:
    return FractalError(
        f"the Ray cluster could not build every shard ({reason}): check that its machines see the "
        f"source and the data folder, and run the same command again to continue"
    )
