"""A machine is lost: training continues with fewer workers, no image is lost or seen twice."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from fractal_model.parallel.ray_cluster import ray_cluster
from fractal_model.training.ray_train.machines import Machines
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


def test_every_machine_has_system_metrics_also_after_one_is_lost():
    """The simulated machines share a host name, so all but one have a part of Ray's id appended."""
    with machines(2, workers=0) as (cluster, nodes), ray_cluster(1):
        measured = Machines()

        def names_of(count: int) -> set[str]:
            """Measure until `count` machines answer; return their names."""
            deadline = time.monotonic() + 120
            while True:
                metrics = measured.measure()
                names = {name.split("/")[1] for name in metrics}
                if len(names) == count:
                    key = "cpu_utilization_percentage"
                    assert all(f"system/{name}/{key}" in metrics for name in names)
                    return names
                assert time.monotonic() < deadline, names

        three = names_of(3)
        assert {name.removeprefix(socket.gethostname())[:1] for name in three} == {"", "-"}
        cluster.remove_node(nodes[0])
        two = names_of(2)
        assert two < three
        add_machine(cluster, workers=0)
        assert len(names_of(3) - three) == 1
