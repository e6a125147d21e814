"""A checkpoint is complete or refused; nothing in it is ever unpickled as code."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fractal_model.checkpoints import checkpoint as module
from fractal_model.checkpoints.checkpoint import (
    Progress,
    load_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from fractal_model.common.errors import FractalError
from fractal_model.tracking.model_source import load_model
from tests.support import tiny_model

PROGRESS = Progress(size="tiny", fingerprint="f" * 64, position=640, steps=10)
FILES = ("model.safetensors", "config.json", "optimizer.pt", "progress.json", "checksums.json")


@pytest.fixture
def saved(tmp_path):
    model = tiny_model("guided")
    optimizer = torch.optim.AdamW(model.parameters())
    model.null_embedding.sum().backward()
    optimizer.step()
    folder = tmp_path / "runs" / "checkpoint"
    save_checkpoint(folder, model=model, optimizer=optimizer.state_dict(), progress=PROGRESS)
    return folder, model, optimizer


def test_round_trip(saved):
    folder, model, optimizer = saved
    found = load_checkpoint(folder)
    rebuilt = found.build_model()
    assert found.progress == PROGRESS
    assert rebuilt.config == model.config
    assert all(a.equal(b) for a, b in zip(rebuilt.parameters(), model.parameters(), strict=True))
    assert found.optimizer["param_groups"] == optimizer.state_dict()["param_groups"]
    assert not rebuilt.training
    assert {path.name for path in folder.iterdir()} == {*FILES, "COMPLETE"}
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def test_without_optimiser_state(saved):
    folder = saved[0].with_name("weights only")
    save_checkpoint(folder, model=saved[1], optimizer=None, progress=PROGRESS)
    assert load_checkpoint(folder).optimizer is None
    assert not (folder / "optimizer.pt").exists()


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found(saved, name):
    file = saved[0] / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    with pytest.raises(FractalError, match=name) as caught:
        load_checkpoint(saved[0])
    assert "\n" not in str(caught.value)


def test_a_damaged_marker_is_found(saved):
    marker = saved[0] / "COMPLETE"
    content = bytearray(marker.read_bytes())
    content[3] |= 0x80  # no longer text
    marker.write_bytes(content)
    with pytest.raises(FractalError, match="COMPLETE did"):
        load_checkpoint(saved[0])


@pytest.mark.parametrize("name", FILES[:4])
def test_a_truncated_or_missing_file_is_found(saved, name):
    file = saved[0] / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FractalError, match=name):
        verify_checkpoint(saved[0])
    file.unlink()
    with pytest.raises(FractalError, match=f"{name} is missing"):
        verify_checkpoint(saved[0])


def test_without_its_marker_it_is_incomplete(saved):
    (saved[0] / "COMPLETE").unlink()
    with pytest.raises(FractalError, match="COMPLETE"):
        load_checkpoint(saved[0])


def test_no_folder(tmp_path):
    with pytest.raises(FractalError, match="no checkpoint folder"):
        load_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("step", ["save_weights", "_write_text"])
def test_full_disk_leaves_earlier_checkpoints_alone(saved, monkeypatch, step):
    folder, model, optimizer = saved

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, step, full)
    with pytest.raises(FractalError, match="disk is full"):
        save_checkpoint(
            folder.with_name("next"),
            model=model,
            optimizer=optimizer.state_dict(),
            progress=PROGRESS,
        )
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]
    verify_checkpoint(folder)


def _die_at(number: int, what: Path, write: Callable[[Path], None]) -> bool:
    """In a process of its own: writes, and is killed at the `number`-th file system call that
    changes something below `what`, before it is made. Whether it got that far."""

    def child() -> None:
        seen = itertools.count()

        def hook(event: str, arguments: tuple) -> None:
            changes = event in ("os.rename", "os.mkdir", "os.remove") or (
                event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wxa"
            )
            if changes and str(what) in str(arguments[0]) and next(seen) == number:
                os._exit(99)

        sys.addaudithook(hook)
        write(what / "next")
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    return process.exitcode == 99


def test_killed_at_any_step_of_writing_the_one_before_loads(saved):
    folder, model, optimizer = saved
    state, steps = optimizer.state_dict(), 0

    def write(target: Path) -> None:
        save_checkpoint(target, model=model, optimizer=state, progress=PROGRESS)

    while _die_at(steps, folder.parent, write):
        steps += 1
        assert load_checkpoint(folder).progress == PROGRESS
        assert not (folder.parent / "next").exists()
    assert steps >= len(FILES)
    verify_checkpoint(folder.parent / "next")  # undisturbed, over what was left behind


class _Payload:
    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return (open, (self.file, "w"))


def test_pickled_code_is_refused_and_does_not_run(saved, tmp_path):
    """Even with checksums that fit."""
    folder, trap = saved[0], tmp_path / "executed"
    with (folder / "optimizer.pt").open("wb") as file:
        pickle.dump(_Payload(trap), file)
    sums = json.loads((folder / "checksums.json").read_text())
    sums["optimizer.pt"] = hashlib.sha256((folder / "optimizer.pt").read_bytes()).hexdigest()
    (folder / "checksums.json").write_text(json.dumps(sums))
    marker = hashlib.sha256((folder / "checksums.json").read_bytes()).hexdigest()
    (folder / "COMPLETE").write_text(marker)
    with pytest.raises(FractalError, match="optimizer"):
        load_checkpoint(folder)
    assert not trap.exists()


def test_either_the_weights_or_their_average_makes_the_model(tmp_path):
    model, average = tiny_model("mar"), tiny_model("mar", sharpen=2.0)
    save_checkpoint(tmp_path / "c", model=model, optimizer={}, progress=PROGRESS, ema=average)
    for source, expected in ((tmp_path / "c", model), (f"{tmp_path / 'c'}#ema", average)):
        found = load_model(str(source), tmp_path)
        assert all(
            a.equal(b) for a, b in zip(found.parameters(), expected.parameters(), strict=True)
        )


def test_an_average_that_is_not_there(saved, tmp_path):
    with pytest.raises(FractalError, match="no moving average.*ema_decay"):
        load_model(f"{saved[0]}#ema", tmp_path)
