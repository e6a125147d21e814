"""A Ray cluster prepares the same bytes as one machine, and fails with one line."""

from pathlib import Path

import pytest

from fractal_model.common.errors import FractalError
from fractal_model.config.data import PreparationConfig
from fractal_model.data.preparation import prepare_source
from fractal_model.data.shard_job import build_in_processes
from fractal_model.data.sources.registered import register
from fractal_model.parallel.ray_cluster import ray_cluster
from fractal_model.parallel.ray_shards import build_shards_on_cluster
from tests.support import mini_imagenet as mini
from tests.support.preparing import SIDE, contents


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with ray_cluster(cpus=1):
        yield


def prepare(data: Path, run_jobs) -> None:
    prepare_source(
        data,
        "imagenet16",
        source="imagenet",
        resolution=SIDE,
        settings=PreparationConfig(max_quarantined_share=0, processes=1),
        run_jobs=run_jobs,
    )


def test_a_cluster_prepares_the_same_bytes_as_one_process(tmp_path):
    root = mini.write_tree(tmp_path / "raw")
    for name, run_jobs in (
        ("one", lambda jobs: build_in_processes(jobs, 1)),
        ("ray", build_shards_on_cluster),
    ):
        register(root, tmp_path / name, resolutions=(SIDE,))
        prepare(tmp_path / name, run_jobs)
    assert contents(tmp_path / "ray/imagenet16") == contents(tmp_path / "one/imagenet16")


def require_refusal(data: Path, run_jobs, message: str) -> None:
    """Require that `prepare` raises an error with `message` on one line."""
    with pytest.raises(FractalError, match=message) as raised:
        prepare(data, run_jobs)
    text = str(raised.value)
    assert "\n" not in text and "\x1b" not in text and "Traceback" not in text
    assert len(text) < 600


def test_a_missing_image_is_named_as_on_one_machine(tmp_path):
    root = mini.write_tree(tmp_path / "raw")
    register(root, tmp_path / "data", resolutions=(SIDE,))
    (root / "train/n01440764/n01440764_5.JPEG").unlink()
    require_refusal(
        tmp_path / "data", build_shards_on_cluster, "^n01440764/n01440764_5.JPEG cannot be read "
    )


def test_another_failure_is_named_without_its_traceback(tmp_path):
    register(mini.write_tree(tmp_path / "raw"), tmp_path / "data", resolutions=(SIDE,))

    def spoil_and_run(jobs):
        (tmp_path / "data/.imagenet16.partial/done").rmdir()
        build_shards_on_cluster(jobs)

    require_refusal(tmp_path / "data", spoil_and_run, "could not build every shard .*No such file")
