"""A checkpoint is read from a folder of this machine, wherever it is kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from fractal_model.checkpoints import storage
from fractal_model.checkpoints.storage import fetch_checkpoint


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run/checkpoint_1").mkdir(parents=True)
    (tmp_path / "run/checkpoint_1/COMPLETE").write_text("sum")
    return tmp_path / "run"


def test_a_local_one_is_read_in_its_place(run):
    for filesystem in (None, LocalFileSystem()):
        with fetch_checkpoint(str(run / "checkpoint_1"), filesystem) as folder:
            assert folder == run / "checkpoint_1"
    assert folder.is_dir()


@pytest.fixture
def elsewhere(run, monkeypatch) -> SubTreeFileSystem:
    """To pyarrow this is no local file system, as an object store is none."""
    filesystem = SubTreeFileSystem(str(run.parent), LocalFileSystem())
    known = {"s3://runs/run/checkpoint_1": (filesystem, "run/checkpoint_1")}
    monkeypatch.setattr(storage, "FileSystem", SimpleNamespace(from_uri=known.__getitem__))
    return filesystem


def test_one_of_an_object_store_is_there_for_the_block(run, elsewhere):
    for place in (("s3://runs/run/checkpoint_1",), ("run/checkpoint_1", elsewhere)):
        with fetch_checkpoint(*place) as folder:
            assert folder.name == "checkpoint_1" and folder.parent != run
            assert (folder / "COMPLETE").read_text() == "sum"
        assert not folder.parent.exists()


def test_one_that_does_not_exist_is_a_folder_that_does_not(elsewhere):
    with fetch_checkpoint("run/checkpoint_2", elsewhere) as folder:
        assert not folder.exists()
