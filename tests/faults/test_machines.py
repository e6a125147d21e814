"""A machine is lost: training goes on with fewer workers, and no image is lost or seen twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fractal_model.data.order import stream_indices
from fractal_model.ray_cluster import ray_cluster
from fractal_model.training.trainer import Trainer
from fractal_model.training.worker import train_worker
from tests.faults.conftest import BATCH, IMAGES
from tests.simulated_cluster import ACCELERATOR, machines

pytestmark = pytest.mark.slow
EPOCHS = 6


def _writes_down_what_it_sees(folder: Path):
    """The worker; each rank appends the position and its images of every step."""

    def worker(config):
        original = Trainer.step

        def step(trainer, batch):
            position = trainer.position
            report = original(trainer, batch)
            seen = " ".join(map(str, batch.indices.tolist()))
            with (folder / f"{position:06d}").open("a") as file:
                file.write(f"{trainer._world_size} {trainer._rank} {seen}\n")
            return report

        Trainer.step = step
        train_worker(config)

    return worker


def _last_word(file: Path) -> tuple[int, list[int]]:
    """How many workers made the step, the last time it was made, and its images in order."""
    lines = [[int(word) for word in line.split()] for line in file.read_text().splitlines()]
    workers = lines[-1][0]
    ranks = {rank: images for count, rank, *images in lines if count == workers}
    assert sorted(ranks) == list(range(workers))
    return workers, [image for rank in sorted(ranks) for image in ranks[rank]]


def test_training_goes_on_with_the_workers_that_are_left(new_run, tmp_path):
    seen = tmp_path / "seen"
    seen.mkdir()
    run = new_run(
        epochs=EPOCHS,
        workers=4,
        min_workers=1,
        resources_per_worker={"CPU": 1.0, ACCELERATOR: 1.0},
        max_failures=3,
    )
    with machines(2, each=2) as (cluster, nodes), ray_cluster(1):
        lost = run.when(2 * IMAGES, lambda: cluster.remove_node(nodes[0]))
        weights = run.train(worker=_writes_down_what_it_sees(seen))
        lost.join()
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert {report["workers"] for report in run.reports} == {2, 4}
    steps = [_last_word(file) for file in sorted(seen.iterdir())]
    assert [images for _, images in steps] == [
        stream_indices(seed=0, start=start, count=BATCH, size=IMAGES).tolist()
        for start in range(0, EPOCHS * IMAGES, BATCH)
    ]
    assert (steps[0][0], steps[-1][0]) == (4, 2)


def test_training_waits_for_a_machine_where_too_few_are_left(new_run):
    run = new_run(
        workers=2,
        min_workers=2,
        resources_per_worker={"CPU": 1.0, ACCELERATOR: 1.0},
        max_failures=3,
    )
    with machines(2, each=1) as (cluster, nodes), ray_cluster(1), joining() as join:

        def replace():
            cluster.remove_node(nodes[0])
            time.sleep(5)
            join(cluster.address)

        lost = run.when(2 * IMAGES, replace)
        run.train()
        lost.join()
    assert run.position == 6 * IMAGES


@contextmanager
def joining() -> Iterator[Callable[[str], None]]:
    """Yields what starts one more machine for a cluster, from any thread, as a person would."""
    started: list[subprocess.Popen] = []

    def join(address: str) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        command += ["--address", address, "--node-ip-address", "127.0.0.1", "--num-cpus", "1"]
        command += ["--min-worker-port", "0", "--max-worker-port", "0"]
        command += ["--resources", json.dumps({ACCELERATOR: 1})]
        environment = {**os.environ, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started.append(subprocess.Popen(command, env=environment, **quiet))

    try:
        yield join
    finally:
        for process in started:
            process.terminate()
            process.wait()
