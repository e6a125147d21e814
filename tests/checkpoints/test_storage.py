"""A checkpoint is read from a folder on this machine, also if it is in an object store."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from fractal_model.checkpoints import storage
from fractal_model.checkpoints.storage import fetch_checkpoint, is_complete, store_checkpoint
from fractal_model.common.errors import FractalError


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
    names = ("checkpoint_1", "start")
    file_systems = {f"s3://runs/run/{name}": (filesystem, f"run/{name}") for name in names}
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


def write_checkpoint(folder: Path) -> None:
    """Write three files with a stand-in for the marker."""
    folder.mkdir()
    for name in ("COMPLETE", "config.json", "progress.json"):
        (folder / name).write_text(name)


@pytest.mark.parametrize("kind", ["folder", "store"])
def test_a_stored_checkpoint_is_complete(run, object_store, kind):
    place = "s3://runs/run/start" if kind == "store" else str(run / "start")
    assert not is_complete(place)
    with store_checkpoint(place) as folder:
        write_checkpoint(folder)
    assert is_complete(place)
    names = sorted(file.name for file in (run / "start").iterdir())
    assert names == ["COMPLETE", "config.json", "progress.json"]
    assert (run / "start/config.json").read_text() == "config.json"
    assert kind == "folder" or not folder.exists()


def test_the_marker_is_stored_last(run, object_store, monkeypatch):
    """So a checkpoint whose upload was interrupted is not taken for a complete one."""
    copied = []

    def copy_until_the_network_fails(source, *arguments, **options):
        if len(copied) == 2:
            raise OSError("AWS Error NETWORK_CONNECTION\nno route")
        copied.append(Path(source).name)

    monkeypatch.setattr(storage, "copy_files", copy_until_the_network_fails)
    with (
        pytest.raises(FractalError, match="does not answer at s3://runs/run/start .AWS") as raised,
        store_checkpoint("s3://runs/run/start") as folder,
    ):
        write_checkpoint(folder)
    assert copied == ["config.json", "progress.json"]
    assert "\n" not in str(raised.value)
    assert not is_complete("s3://runs/run/start")


def test_a_store_that_does_not_answer_is_named(monkeypatch):
    def fail(address):
        raise OSError("no route to host")

    monkeypatch.setattr(storage, "FileSystem", SimpleNamespace(from_uri=fail))
    with pytest.raises(FractalError, match="does not answer at s3://runs/x .no route to host"):
        is_complete("s3://runs/x")
