"""Checkpoints in the run's storage: which one all ranks resume from, what is removed."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow.fs
import pytest
import torch.distributed
import torch.multiprocessing
from ray.train import Checkpoint

from fractal_model.checkpoints import storage
from fractal_model.checkpoints.checkpoint import Progress, save_checkpoint
from fractal_model.common.errors import FractalError
from fractal_model.training.ray_train.stored import load_newest_undamaged, remove_incomplete
from tests.support import tiny_model


def context_of(rank: int = 0, node: int = 0, local: int = 0) -> SimpleNamespace:
    """Stand-in for Ray's context, with the ranks of a worker."""
    return SimpleNamespace(
        get_world_rank=lambda: rank, get_node_rank=lambda: node, get_local_rank=lambda: local
    )


def store_of(run: Path) -> pyarrow.fs.FileSystem:
    """File system that pyarrow treats like an object store, because it is not a local one."""
    return pyarrow.fs.SubTreeFileSystem(str(run.parent), pyarrow.fs.LocalFileSystem())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Folder of a run with checkpoints 1 to 4, 10 steps apart, and a copy of the last in `best`."""
    model = tiny_model("ar")
    for number in (1, 2, 3, 4):
        progress = Progress(size="t", fingerprint="f", position=80 * number, steps=10 * number)
        folder = tmp_path / "run" / f"checkpoint_{number}"
        save_checkpoint(folder, model=model, optimizer={}, progress=progress)
    shutil.copytree(tmp_path / "run" / "checkpoint_4", tmp_path / "run" / "best" / "checkpoint_4")
    return tmp_path / "run"


@pytest.fixture(params=["folder", "store"])
def newest(request: pytest.FixtureRequest, run: Path) -> Checkpoint:
    """Checkpoint 3, the newest that was reported to Ray, in a folder or in an object store."""
    if request.param == "folder":
        return Checkpoint.from_directory(run / "checkpoint_3")
    return Checkpoint("run/checkpoint_3", store_of(run))


def test_the_newest_undamaged_checkpoint_is_loaded_and_damage_is_reported(newest, run):
    def load() -> tuple[int, tuple[str, ...]]:
        resumed = load_newest_undamaged(newest, context_of())
        return resumed.checkpoint.progress.steps, resumed.damaged

    assert load() == (30, ())  # Checkpoint 4 was never reported.
    weights = run / "checkpoint_3" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    steps, (damage,) = load()
    assert steps == 20
    assert f"{newest.path} is damaged: model.safetensors" in damage
    shutil.rmtree(run / "checkpoint_2")
    (run / "checkpoint_1" / "COMPLETE").unlink()
    with pytest.raises(FractalError, match="checkpoint_3 is damaged: model.safetensors") as raised:
        load()
    assert "\n" not in str(raised.value)


def test_a_missing_checkpoint_counts_as_damaged(newest, run):
    shutil.rmtree(run / "checkpoint_3")
    resumed = load_newest_undamaged(newest, context_of())
    assert resumed.checkpoint.progress.steps == 20
    assert f"no checkpoint folder {newest.path}" in resumed.damaged[0]


def test_a_store_that_does_not_answer_is_an_error_not_damage(monkeypatch, run):
    def fail(*_: object, **__: object) -> None:
        raise OSError("AWS Error NETWORK_CONNECTION\nno route")

    monkeypatch.setattr(storage, "copy_files", fail)
    with pytest.raises(FractalError, match="cannot be fetched .AWS Error NETWORK.*check") as raised:
        load_newest_undamaged(Checkpoint("run/checkpoint_3", store_of(run)), context_of())
    assert "\n" not in str(raised.value)


def test_incomplete_checkpoints_are_removed(run):
    for name in ("checkpoint_2", "checkpoint_3"):
        (run / name / "COMPLETE").unlink()
    (run / "checkpoint_4" / "model.safetensors").unlink()  # It is damaged, but it was complete.
    remove_incomplete(pyarrow.fs.LocalFileSystem(), str(run), keep=frozenset({"checkpoint_3"}))
    names = sorted(path.name for path in run.iterdir())
    assert names == ["best", "checkpoint_1", "checkpoint_3", "checkpoint_4"]


CASES = ("newest damaged for rank 0", "damaged for rank 1", "another for rank 1")


def _load_on_rank(rank: int, folder: str) -> None:
    """Load as one rank on its own machine, which sees its own copy of the storage."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    stored = Checkpoint("run/checkpoint_3", pyarrow.fs.LocalFileSystem())
    for case in CASES:
        os.chdir(f"{folder}/{case}/{rank}")
        try:
            outcome = str(
                load_newest_undamaged(stored, context_of(rank, node=rank)).checkpoint.progress.steps
            )
        except FractalError as error:
            outcome = str(error)
        Path("outcome").write_text(outcome)
    torch.distributed.destroy_process_group()


def test_all_ranks_resume_from_the_same_checkpoint_or_none_does(run, tmp_path):
    for case, rank in itertools.product(CASES, "01"):
        shutil.copytree(run, tmp_path / case / rank / "run")
    (tmp_path / CASES[0] / "0/run/checkpoint_3/COMPLETE").unlink()
    (tmp_path / CASES[1] / "1/run/checkpoint_3/model.safetensors").write_bytes(b"")
    theirs = tmp_path / CASES[2] / "1/run/checkpoint_3"
    shutil.rmtree(theirs)
    shutil.copytree(run / "checkpoint_2", theirs)
    torch.multiprocessing.spawn(_load_on_rank, (str(tmp_path),), nprocs=2)

    resumed, damaged, another = (
        {(tmp_path / case / rank / "outcome").read_text() for rank in "01"} for case in CASES
    )
    assert resumed == {"20"}
    for (message,), theirs in (
        (damaged, "rank 1 reads the checkpoint run/checkpoint_3 is damaged"),
        (another, "rank 1 reads position 160"),
    ):
        assert "same checkpoint run/checkpoint_3: rank 0 reads position 240" in message
        assert theirs in message
        assert "\n" not in message
