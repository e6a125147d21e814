"""A machine is lost: training continues with fewer workers, no image is lost or seen twice."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fractal_model.parallel.ray_cluster import ray_cluster
from fractal_model.training.ray_train.run import PLACEMENT_SECONDS
from tests.support.disturbed_runs import BATCH, IMAGES
from tests.support.images_seen import recording_worker, steps_seen
from tests.support.simulated_cluster import ACCELERATOR, add_machine, machines

pytestmark = pytest.mark.faults
EPOCHS = 6
PER_WORKER = {"CPU": 1.0, ACCELERATOR: 1.0}
LONGER_THAN_PLACEMENT = PLACEMENT_SECONDS + 10


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    folder = tmp_path / "seen"
    folder.mkdir()
    return folder


def test_training_continues_with_the_remaining_workers(new_run, seen):
    run = new_run(
        epochs=EPOCHS, workers=4, min_workers=1, resources_per_worker=PER_WORKER, max_failures=3
    )
    with machines(2, workers=2) as (cluster, nodes), ray_cluster(1):
        lost = run.when(2 * IMAGES, lambda: cluster.remove_node(nodes[0]))
        weights = run.train(worker=recording_worker(seen))
        lost.join()
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert {report.workers for report in run.reports} == {2, 4}
    steps = steps_seen(seen, epochs=EPOCHS, images=IMAGES, batch=BATCH)
    assert (steps[0], steps[-1]) == (4, 2)


def test_training_waits_for_a_machine_and_resumes(new_run, seen):
    run = new_run(
        epochs=EPOCHS, workers=2, min_workers=2, resources_per_worker=PER_WORKER, max_failures=1
    )
    progress = []

    def replace_the_machine(cluster, node) -> None:
        cluster.remove_node(node)
        position, quiet_until = run.position, time.monotonic() + LONGER_THAN_PLACEMENT
        while time.monotonic() < quiet_until:
            time.sleep(1)
            progress.append(run.position - position)
        add_machine(cluster, workers=2)

    with machines(1, workers=2) as (cluster, (node,)), ray_cluster(1):
        replaced = run.when(2 * IMAGES, lambda: replace_the_machine(cluster, node))
        run.train(worker=recording_worker(seen))
        replaced.join()
    # Reports that were under way arrive within 5 s; then training waits.
    assert max(progress[5:]) == progress[5]
    assert set(steps_seen(seen, epochs=EPOCHS, images=IMAGES, batch=BATCH)) == {2}
    assert run.position == EPOCHS * IMAGES
