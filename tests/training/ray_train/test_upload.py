"""Uploads of checkpoints, and the scratch folders that killed workers leave."""

from __future__ import annotations

import multiprocessing
import tempfile
from types import SimpleNamespace

import pyarrow.fs
import pytest
import ray.train
from ray.train import Checkpoint

from fractal_model.training.ray_train import upload
from fractal_model.training.ray_train.upload import Upload, new_scratch, remove_abandoned_scratch


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp"


def test_scratch_folders_of_ended_processes_are_removed(temporary):
    child = multiprocessing.get_context("fork").Process(target=new_scratch)
    child.start()
    child.join()
    mine = new_scratch()
    others = temporary / "fractal-checkpoint-another.machine-1-abc"  # on a shared disk
    others.mkdir()
    assert len(list(temporary.iterdir())) == 3
    remove_abandoned_scratch()
    assert set(temporary.iterdir()) == {mine, others}


@pytest.fixture
def context(monkeypatch, tmp_path):
    """Stand-in for Ray's context, whose storage copies into tmp_path / "run"."""

    def persist(checkpoint: Checkpoint, name: str) -> Checkpoint:
        target = tmp_path / "run" / name
        target.mkdir(parents=True)
        pyarrow.fs.copy_files(checkpoint.path, str(target))
        return Checkpoint.from_directory(target)

    storage = SimpleNamespace(persist_current_checkpoint=persist)
    monkeypatch.setattr(
        ray.train, "get_context", lambda: SimpleNamespace(get_storage=lambda: storage)
    )
    return storage


@pytest.fixture
def folder():
    folder = new_scratch() / "position-1"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / upload.MARKER).write_bytes(b"sum")
    return folder


def test_the_marker_is_uploaded_last_and_the_scratch_folder_is_removed(
    context, folder, tmp_path, temporary
):
    copied = []
    persist = context.persist_current_checkpoint

    def copy_and_list(checkpoint: Checkpoint, name: str) -> Checkpoint:
        stored = persist(checkpoint, name)
        copied.extend(path.name for path in (tmp_path / "run" / name).iterdir())
        return stored

    context.persist_current_checkpoint = copy_and_list
    uploading = Upload(folder)
    assert not uploading.done.is_set()
    uploading(Checkpoint.from_directory(folder), "checkpoint_1")
    assert uploading.done.is_set()
    assert copied == ["model.safetensors"]
    assert (tmp_path / "run/checkpoint_1" / upload.MARKER).read_bytes() == b"sum"
    assert list(temporary.iterdir()) == []


def test_a_failed_upload_can_be_repeated(context, folder, tmp_path):
    persist = context.persist_current_checkpoint

    def fail(*_: object) -> Checkpoint:
        raise OSError("AWS Error SLOW_DOWN")

    context.persist_current_checkpoint = fail
    uploading = Upload(folder)
    with pytest.raises(OSError, match="SLOW_DOWN"):
        uploading(Checkpoint.from_directory(folder), "checkpoint_1")
    assert not uploading.done.is_set()
    context.persist_current_checkpoint = persist
    uploading(Checkpoint.from_directory(folder), "checkpoint_1")
    assert uploading.done.is_set()
