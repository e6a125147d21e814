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
from fractal_model.training.ray_train.stored import load_newest_whole, remove_incomplete
from tests.support import tiny_model


def place(rank: int = 0, node: int = 0, local: int = 0) -> SimpleNamespace:
    """Where a rank is, as Ray's context says it."""
    return SimpleNamespace(
        get_world_rank=lambda: rank, get_node_rank=lambda: node, get_local_rank=lambda: local
    )


def in_a_store(run: Path) -> pyarrow.fs.FileSystem:
    """To pyarrow this is no local file system, as an object store is none."""
    return pyarrow.fs.SubTreeFileSystem(str(run.parent), pyarrow.fs.LocalFileSystem())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Checkpoints 1 to 4, each 10 steps on; `best` is no older one."""
    model = tiny_model("ar")
    for number in (1, 2, 3, 4):
        progress = Progress(size="t", fingerprint="f", position=80 * number, steps=10 * number)
        folder = tmp_path / "run" / f"checkpoint_{number}"
        save_checkpoint(folder, model=model, optimizer={}, progress=progress)
    shutil.copytree(tmp_path / "run" / "checkpoint_4", tmp_path / "run" / "best" / "checkpoint_4")
    return tmp_path / "run"


@pytest.fixture(params=["folder", "store"])
def newest(request: pytest.FixtureRequest, run: Path) -> Checkpoint:
    """Checkpoint 3, which is the newest that Ray knows."""
    if request.param == "folder":
        return Checkpoint.from_directory(run / "checkpoint_3")
    return Checkpoint("run/checkpoint_3", in_a_store(run))


def test_the_newest_whole_one_is_taken_and_the_damage_is_told(newest, run):
    def found() -> tuple[int, tuple[str, ...]]:
        resumed = load_newest_whole(newest, place())
        return resumed.checkpoint.progress.steps, resumed.damaged

    assert found() == (30, ())  # 4 was never reported
    weights = run / "checkpoint_3" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    steps, (damage,) = found()
    assert steps == 20
    assert f"{newest.path} is damaged: model.safetensors" in damage
    shutil.rmtree(run / "checkpoint_2")
    (run / "checkpoint_1" / "COMPLETE").unlink()
    with pytest.raises(FractalError, match="checkpoint_3 is damaged: model.safetensors") as caught:
        found()
    assert "\n" not in str(caught.value)


def test_one_that_is_gone_is_damaged(newest, run):
    shutil.rmtree(run / "checkpoint_3")
    resumed = load_newest_whole(newest, place())
    assert resumed.checkpoint.progress.steps == 20
    assert f"no checkpoint folder {newest.path}" in resumed.damaged[0]


def test_a_store_that_does_not_answer_is_no_damage(monkeypatch, run):
    def away(*_: object, **__: object) -> None:
        raise OSError("AWS Error NETWORK_CONNECTION\nno route")

    monkeypatch.setattr(storage, "copy_files", away)
    with pytest.raises(FractalError, match="cannot be fetched .AWS Error NETWORK.*check") as caught:
        load_newest_whole(Checkpoint("run/checkpoint_3", in_a_store(run)), place())
    assert "\n" not in str(caught.value)


def test_what_never_was_whole_is_removed(run):
    for name in ("checkpoint_2", "checkpoint_3"):
        (run / name / "COMPLETE").unlink()
    (run / "checkpoint_4" / "model.safetensors").unlink()  # damaged, but it was whole
    remove_incomplete(pyarrow.fs.LocalFileSystem(), str(run), kept=frozenset({"checkpoint_3"}))
    left = sorted(path.name for path in run.iterdir())
    assert left == ["best", "checkpoint_1", "checkpoint_3", "checkpoint_4"]


CASES = ("newest damaged for rank 0", "damaged for rank 1", "another for rank 1")


def _rank(rank: int, folder: str) -> None:
    """Each rank is a machine of its own, which sees its own copy of the storage."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    stored = Checkpoint("run/checkpoint_3", pyarrow.fs.LocalFileSystem())
    for case in CASES:
        os.chdir(f"{folder}/{case}/{rank}")
        try:
            told = str(load_newest_whole(stored, place(rank, node=rank)).checkpoint.progress.steps)
        except FractalError as error:
            told = str(error)
        Path("told").write_text(told)
    torch.distributed.destroy_process_group()


def test_ranks_resume_from_the_same_or_not_at_all(run, tmp_path):
    for case, rank in itertools.product(CASES, "01"):
        shutil.copytree(run, tmp_path / case / rank / "run")
    (tmp_path / CASES[0] / "0/run/checkpoint_3/COMPLETE").unlink()
    (tmp_path / CASES[1] / "1/run/checkpoint_3/model.safetensors").write_bytes(b"")
    theirs = tmp_path / CASES[2] / "1/run/checkpoint_3"
    shutil.rmtree(theirs)
    shutil.copytree(run / "checkpoint_2", theirs)
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)

    chosen, damaged, another = (
        {(tmp_path / case / rank / "told").read_text() for rank in "01"} for case in CASES
    )
    assert chosen == {"20"}
    for (told,), theirs in (
        (damaged, "rank 1 finds the checkpoint run/checkpoint_3 is damaged"),
        (another, "rank 1 finds position 160"),
    ):
        assert "same checkpoint run/checkpoint_3: rank 0 finds position 240" in told
        assert theirs in told
        assert "\n" not in told
