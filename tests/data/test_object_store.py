"""Prepared data sets in an object store: an S3 server on this machine."""

import errno
from pathlib import Path

import numpy as np
import pytest
import s3fs
import torch
from botocore.exceptions import ConnectTimeoutError, NoCredentialsError
from moto.server import ThreadedMotoServer

from fractal_model.common.errors import FractalError
from fractal_model.common.files import CACHE_VARIABLE
from fractal_model.data.loader import train_loader
from fractal_model.data.object_store import RemoteStore
from fractal_model.data.prepared import open_prepared, verify_prepared
from fractal_model.data.writing import write_prepared

ADDRESS = "s3://prepared/noise"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "noise"
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
    write_prepared(
        folder,
        dataset="noise",
        source="",
        preprocessing="",
        resolution=4,
        class_names=["a", "b"],
        splits={"train": [(image, i % 2) for i, image in enumerate(images)]},
        shard_images=15,
    )
    return folder


@pytest.fixture
def bucket(folder, tmp_path, monkeypatch):
    """Upload the data set to a server that ends with the test, and yield its file system."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    files.mkdir("prepared")
    files.put(str(folder), "prepared/noise", recursive=True)
    yield files
    files.rm("prepared", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_images_are_the_same_as_from_disk(bucket, folder):
    here, there = open_prepared(folder, "train"), open_prepared(ADDRESS, "train")
    for one, other in zip(here.load_all(), there.load_all(), strict=True):
        assert torch.equal(one, other)
    verify_prepared(ADDRESS)


def test_files_are_fetched_once_and_when_they_are_needed(bucket, tmp_path):
    split = open_prepared(ADDRESS, "train")

    def cached() -> list[str]:
        return sorted(path.name for path in (tmp_path / "cache").rglob("*.arrow"))

    assert cached() == []
    split[20]
    assert cached() == ["data-00001.arrow"]
    bucket.rm("prepared/noise/train/data-00001.arrow")
    again = open_prepared(ADDRESS, "train")
    assert torch.equal(again[20].image, split[20].image)
    bucket.rm("prepared/noise/train/data-00000.arrow")
    with pytest.raises(FractalError, match=r"train/data-00000.arrow cannot be opened"):
        again[0]


def test_loader_processes_read_a_remote_data_set(bucket, folder):
    def batches(place: Path | str, workers: int) -> list[torch.Tensor]:
        loader = train_loader(
            open_prepared(place, "train"),
            seed=0,
            position=0,
            batch_size=8,
            end_position=40,
            num_workers=workers,
        )
        return [batch.images for batch in loader]

    expected = batches(folder, 0)
    for workers in (0, 2):
        for remote, local in zip(batches(ADDRESS, workers), expected, strict=True):
            assert torch.equal(remote, local)


def test_an_incomplete_file_is_named_and_fetched_again(bucket, tmp_path):
    name = "prepared/noise/train/data-00002.arrow"
    whole = bucket.cat_file(name)
    bucket.pipe_file(name, whole[:100])
    split = open_prepared(ADDRESS, "train")
    with pytest.raises(FractalError, match=r"data-00002.arrow has 100 bytes, the manifest says"):
        split[39]
    bucket.pipe_file(name, whole)
    assert split[39].index == 39


def test_a_replaced_data_set_does_not_mix_with_the_cache(bucket, folder, tmp_path):
    open_prepared(ADDRESS, "train")[0]
    changed = tmp_path / "changed"
    images = np.full((40, 4, 4, 3), 7, dtype=np.uint8)
    write_prepared(
        changed,
        dataset="noise",
        source="",
        preprocessing="",
        resolution=4,
        class_names=["a", "b"],
        splits={"train": [(image, 0) for image in images]},
        shard_images=15,
    )
    for file in (path for path in changed.rglob("*") if path.is_file()):
        bucket.put_file(str(file), f"prepared/noise/{file.relative_to(changed).as_posix()}")
    assert (open_prepared(ADDRESS, "train")[0].image == 7).all()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("s3://prepared/nothing", "no prepared data set at s3://prepared/nothing"),
        ("s3://no-such-bucket/noise", "no-such-bucket"),
        ("nonsense://prepared/noise", "cannot be opened .*such as s3://"),
    ],
)
def test_a_place_without_a_data_set_is_named(bucket, place, message):
    with pytest.raises(FractalError, match=message) as raised:
        open_prepared(place, "train")
    assert "\n" not in str(raised.value)


def test_a_missing_server_is_named(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(FractalError, match="s3://prepared/noise cannot be read .*check the place"):
        open_prepared(ADDRESS, "train")


def assert_fetch_fails(split, message: str) -> None:
    with pytest.raises(FractalError, match=message) as raised:
        split[20]
    assert "\n" not in str(raised.value) and "damaged" not in str(raised.value)


def test_a_server_that_stops_is_not_reported_as_damage(bucket, monkeypatch):
    split = open_prepared(ADDRESS, "train")
    with monkeypatch.context() as away:
        away.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        away.setenv("AWS_MAX_ATTEMPTS", "1")
        s3fs.S3FileSystem.clear_instance_cache()
        assert_fetch_fails(
            split, "data-00001.arrow of s3://prepared/noise cannot be fetched .*access"
        )
    s3fs.S3FileSystem.clear_instance_cache()
    assert split[20].index == 20


@pytest.mark.parametrize(
    "error",
    [
        NoCredentialsError(),
        ConnectTimeoutError(endpoint_url="http://there"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_errors_of_the_store_or_the_cache_are_not_reported_as_damage(bucket, monkeypatch, error):
    split = open_prepared(ADDRESS, "train")

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(RemoteStore, "_fetch", refuse)
    assert_fetch_fails(split, f"cannot be fetched .*{CACHE_VARIABLE}")
