"""Training whose storage is an object store: an S3 server on this machine."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import s3fs
from moto.server import ThreadedMotoServer
from safetensors.torch import load_file

from fractal_model.checkpoints.checkpoint import load_checkpoint
from fractal_model.checkpoints.storage import fetch_checkpoint
from fractal_model.common.errors import FractalError
from fractal_model.parallel.ray_cluster import ray_cluster
from fractal_model.training.ray_train.run import run_training
from fractal_model.training.start import Start
from tests.support import tiny_model
from tests.support.disturbed_runs import IMAGES, VALIDATION, Run, assert_equal, training_workers

STORAGE = "s3://runs/tiny"

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def store():
    """Files of an S3 server, to which the environment directs every client."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        files = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
        files.mkdir("runs")
        yield files
    server.stop()


@pytest.fixture(scope="module")
def cluster(store):
    """A Ray cluster started after the store, so that its workers use the store too."""
    with ray_cluster(cpus=4):
        yield


def _train(run: Run) -> str:
    """Train to the end and return the last checkpoint's address."""
    return run_training(run.job, on_report=run.reports.append)


def _checkpoints(store: s3fs.S3FileSystem, run: Run) -> list[str]:
    return sorted(store.glob(f"runs/tiny/{run.job.name}/checkpoint_*/COMPLETE"))


def test_a_killed_run_with_a_damaged_checkpoint_reaches_the_same_weights(new_run, straight, store):
    run = new_run(max_failures=0, validate_every_epochs=2, validation=VALIDATION)
    run.job = run.job.model_copy(update={"storage": STORAGE})
    killer = run.when(4 * IMAGES, lambda: training_workers()[0].send_signal(signal.SIGKILL))
    with pytest.raises(FractalError, match="training failed"):
        _train(run)
    killer.join()
    newest = str(Path(_checkpoints(store, run)[-1]).parent)
    weights = f"{newest}/model.safetensors"
    store.pipe_file(weights, store.cat_file(weights)[:-1])
    partial = f"runs/tiny/{run.job.name}/checkpoint_2020-01-01_00-00-00.000000"
    store.pipe_file(f"{partial}/model.safetensors", b"of an upload that was killed")

    run.reports.clear()
    with fetch_checkpoint(_train(run)) as folder:
        assert load_checkpoint(folder).progress.position == 6 * IMAGES
        assert_equal(load_file(folder / "model.safetensors"), straight)
    first = run.reports[0]
    assert f"{newest} is damaged: model.safetensors" in first.note
    assert first.position < 4 * IMAGES
    assert not store.exists(partial)
    assert len(_checkpoints(store, run)) == 2
    best = json.loads(store.cat_file(f"runs/tiny/{run.job.name}/best.json"))["checkpoint"]
    with fetch_checkpoint(f"{STORAGE}/{run.job.name}/best/{best}") as folder:
        load_checkpoint(folder)


def test_weights_to_start_from_are_read_from_the_store(new_run, store, cluster):
    run, model = new_run(max_failures=0, epochs=2, start_from="gone"), tiny_model("mar")
    ends = []
    for storage in (run.job.storage, STORAGE):
        run.job = run.job.model_copy(update={"storage": storage, "fingerprint": "e" * 64})
        start = Start("gone", "b" * 64, None, "c" * 64, 4, 0, model)
        start.store(run.job.start, size="tiny", fingerprint=run.job.fingerprint)
        with fetch_checkpoint(_train(run)) as folder:
            ends.append(load_file(folder / "model.safetensors"))
    assert_equal(*ends)
    assert store.exists(f"runs/tiny/{run.job.name}/start/COMPLETE")
