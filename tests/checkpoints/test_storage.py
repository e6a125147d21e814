"""A checkpoint is read from a folder on this machine, also if it is in an object store."""

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


def test_a_local_checkpoint_is_not_copied(run):
    for filesystem in (None, LocalFileSystem()):
        with fetch_checkpoint(str(run / "checkpoint_1"), filesystem) as folder:
            assert folder == run / "checkpoint_1"
    assert folder.is_dir()


@pytest.fixture
def object_store(run, monkeypatch) -> SubTreeFileSystem:
    """File system that pyarrow treats like an object store, because it is not a local one."""
    filesystem = SubTreeFileSystem(str(run.parent), LocalFileSystem())
    file_systems = {"s3://runs/run/checkpoint_1": (filesystem, "run/checkpoint_1")}
    monkeypatch.setattr(storage, "FileSystem", SimpleNamespace(from_uri=file_systems.__getitem__))
    return filesystem


def test_a_checkpoint_of_an_object_store_is_copied_for_the_block(run, object_store):
    for arguments in (("s3://runs/run/checkpoint_1",), ("run/checkpoint_1", object_store)):
        with fetch_checkpoint(*arguments) as folder:
            assert folder.name == "checkpoint_1" and folder.parent != run
            assert (folder / "COMPLETE").read_text() == "sum"
        assert not folder.parent.exists()


def test_a_missing_checkpoint_gives_a_missing_folder(object_store):
    with fetch_checkpoint("run/checkpoint_2", object_store) as folder:
        assert not folder.exists()
