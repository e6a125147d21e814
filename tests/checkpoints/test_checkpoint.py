"""A checkpoint is complete or refused, and loading it never runs code."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fractal_model.checkpoints import checkpoint as module
from fractal_model.checkpoints.checkpoint import (
    Progress,
    copy_for_sampling,
    load_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from fractal_model.common.errors import FractalError
from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.serving import ServingConfig
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


def test_a_saved_checkpoint_loads_unchanged(saved):
    folder, model, optimizer = saved
    loaded = load_checkpoint(folder)
    rebuilt = loaded.build_model()
    assert loaded.progress == PROGRESS
    assert rebuilt.config == model.config
    assert all(a.equal(b) for a, b in zip(rebuilt.parameters(), model.parameters(), strict=True))
    assert loaded.optimizer["param_groups"] == optimizer.state_dict()["param_groups"]
    assert not rebuilt.training
    assert {path.name for path in folder.iterdir()} == {*FILES, "COMPLETE"}
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def test_a_checkpoint_without_optimiser_state_has_no_file_for_it(saved):
    folder = saved[0].with_name("weights only")
    save_checkpoint(folder, model=saved[1], optimizer=None, progress=PROGRESS)
    assert load_checkpoint(folder).optimizer is None
    assert not (folder / "optimizer.pt").exists()


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_detected(saved, name):
    file = saved[0] / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    with pytest.raises(FractalError, match=name) as raised:
        load_checkpoint(saved[0])
    assert "\n" not in str(raised.value)


def test_a_damaged_marker_is_detected(saved):
    marker = saved[0] / "COMPLETE"
    content = bytearray(marker.read_bytes())
    content[3] |= 0x80  # The marker is no longer text.
    marker.write_bytes(content)
    with pytest.raises(FractalError, match="COMPLETE has changed"):
        load_checkpoint(saved[0])


@pytest.mark.parametrize("name", FILES[:4])
def test_a_truncated_or_missing_file_is_detected(saved, name):
    file = saved[0] / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FractalError, match=name):
        verify_checkpoint(saved[0])
    file.unlink()
    with pytest.raises(FractalError, match=f"{name} is missing"):
        verify_checkpoint(saved[0])


def test_a_checkpoint_without_a_marker_is_incomplete(saved):
    (saved[0] / "COMPLETE").unlink()
    with pytest.raises(FractalError, match="COMPLETE"):
        load_checkpoint(saved[0])


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FractalError, match="no checkpoint folder"):
        load_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("step", ["save_weights", "_write_text"])
def test_a_full_disk_does_not_change_earlier_checkpoints(saved, monkeypatch, step):
    folder, model, optimizer = saved

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, step, fail)
    with pytest.raises(FractalError, match="disk is full"):
        save_checkpoint(
            folder.with_name("next"),
            model=model,
            optimizer=optimizer.state_dict(),
            progress=PROGRESS,
        )
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]
    verify_checkpoint(folder)


def _is_killed_at(number: int, parent: Path, write: Callable[[Path], None]) -> bool:
    """Call `write` in a child process and kill the child before its `number`-th change of a file in
    `parent`. Return False if there are fewer changes."""

    def child() -> None:
        counter = itertools.count()

        def hook(event: str, arguments: tuple) -> None:
            is_change = event in ("os.rename", "os.mkdir", "os.remove") or (
                event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wxa"
            )
            if is_change and str(parent) in str(arguments[0]) and next(counter) == number:
                os._exit(99)

        sys.addaudithook(hook)
        write(parent / "next")
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    return process.exitcode == 99


def test_an_earlier_checkpoint_loads_after_a_kill_at_any_change(saved):
    folder, model, optimizer = saved
    state, number = optimizer.state_dict(), 0

    def write(target: Path) -> None:
        save_checkpoint(target, model=model, optimizer=state, progress=PROGRESS)

    while _is_killed_at(number, folder.parent, write):
        number += 1
        assert load_checkpoint(folder).progress == PROGRESS
        assert not (folder.parent / "next").exists()
    assert number >= len(FILES)
    verify_checkpoint(folder.parent / "next")  # It replaced an unfinished folder.


def _seal(folder: Path, checksums: bytes | None = None) -> None:
    """Write a valid marker for `checksums`, by default for the correct ones."""
    if checksums is None:
        files = [folder / name for name in FILES[:4]]
        sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        checksums = json.dumps(sums).encode()
    (folder / "checksums.json").write_bytes(checksums)
    (folder / "COMPLETE").write_text(hashlib.sha256(checksums).hexdigest())


DEEP = b"[" * 100_000


@pytest.mark.parametrize("content", [b"[1, 2]", b"\xff\xfe", DEEP, b"{not", b"", b'{"a": 5}'])
def test_checksums_that_are_no_table_are_named(saved, content):
    _seal(saved[0], content)
    with pytest.raises(FractalError, match=r"checksums.json is no table"):
        load_checkpoint(saved[0])


@pytest.mark.parametrize("name", FILES[:4])
def test_a_file_without_a_checksum_is_refused(saved, name):
    sums = json.loads((saved[0] / "checksums.json").read_text())
    del sums[name]
    _seal(saved[0], json.dumps(sums).encode())
    with pytest.raises(FractalError, match=f"checksums.json has no checksum of {name}"):
        verify_checkpoint(saved[0])


@pytest.mark.parametrize("name", ["/etc/hostname", "../x", "a\0b", "weights.safetensors"])
def test_checksums_of_other_files_are_refused(saved, name):
    sums = json.loads((saved[0] / "checksums.json").read_text())
    _seal(saved[0], json.dumps(sums | {name: "0"}).encode())
    with pytest.raises(FractalError, match="names the unknown file"):
        verify_checkpoint(saved[0])


@pytest.mark.parametrize("name", ["config.json", "progress.json", "optimizer.pt"])
@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"\xff\xfe", DEEP, b"{not", b"PK\x03\x04junk"])
def test_a_sealed_file_that_cannot_be_read_is_named_on_one_line(saved, name, content):
    (saved[0] / name).write_bytes(content)
    _seal(saved[0])
    with pytest.raises(FractalError, match=f"{name}.*; use an earlier checkpoint") as raised:
        load_checkpoint(saved[0])
    assert "\n" not in str(raised.value)


def test_optimiser_state_that_is_no_table_is_refused(saved):
    torch.save([1], saved[0] / "optimizer.pt")
    _seal(saved[0])
    with pytest.raises(FractalError, match=r"optimizer.pt is damaged: it holds a list"):
        load_checkpoint(saved[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor.double().fill_(1e300), "not finite in float32"),
        (lambda tensor: tensor.fill_(torch.nan), "not finite in float32"),
        (lambda tensor: tensor.to(torch.int8), "holds torch.int8, expected floating-point"),
        (lambda tensor: tensor[:1], "does not fit the configuration"),
    ],
)
def test_sealed_weights_that_the_model_cannot_use_are_refused(saved, change, message):
    file = saved[0] / "model.safetensors"
    weights = load_file(file)
    name = "class_embedding.weight"
    save_file(weights | {name: change(weights[name]).contiguous()}, file)
    _seal(saved[0])
    with pytest.raises(FractalError, match=message):
        load_checkpoint(saved[0])


class _Payload:
    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return (open, (self.file, "w"))


def test_pickled_code_is_refused_and_does_not_run(saved, tmp_path):
    """The checksums are correct, so only the reading of the pickle refuses it."""
    folder, trap = saved[0], tmp_path / "executed"
    with (folder / "optimizer.pt").open("wb") as file:
        pickle.dump(_Payload(trap), file)
    _seal(folder)
    with pytest.raises(FractalError, match="optimizer"):
        load_checkpoint(folder)
    assert not trap.exists()


def _save_averages(folder, *names):
    """Save a model with other weights for each average: sharpened by 2, 3 and so on."""
    models = {name: tiny_model("mar", sharpen=2.0 + n) for n, name in enumerate(names)}
    averages = {name: model.state_dict() for name, model in models.items()}
    model = tiny_model("mar")
    save_checkpoint(folder, model=model, optimizer={}, progress=PROGRESS, averages=averages)
    return {"model": model} | models


def _is_equal(model, expected):
    pairs = zip(model.parameters(), expected.parameters(), strict=True)
    return all(a.equal(b) for a, b in pairs)


@pytest.mark.parametrize("name", ["ema", "ema-0.999"])
def test_a_model_loads_with_the_weights_or_with_their_only_average(tmp_path, name):
    """Earlier versions wrote the average without its decay."""
    models = _save_averages(tmp_path / "c", name)
    assert (tmp_path / "c" / f"{name}.safetensors").is_file()
    assert _is_equal(load_model(f"{tmp_path / 'c'}", tmp_path), models["model"])
    for selected in ("ema", name):
        assert _is_equal(load_model(f"{tmp_path / 'c'}#{selected}", tmp_path), models[name])
    other = rf"no moving average ema-0\.9: choose #{name}$"
    with pytest.raises(FractalError, match=other):
        load_model(f"{tmp_path / 'c'}#ema-0.9", tmp_path)


def test_one_of_several_averages_is_chosen_by_its_decay(tmp_path):
    models = _save_averages(tmp_path / "c", "ema-0.999", "ema-0.9999")
    for name in ("ema-0.999", "ema-0.9999"):
        assert _is_equal(load_model(f"{tmp_path / 'c'}#{name}", tmp_path), models[name])
        assert _is_equal(load_checkpoint(tmp_path / "c").build_model(name), models[name])
    both = r"several moving averages.*choose #ema-0\.999 or #ema-0\.9999$"
    with pytest.raises(FractalError, match=both):
        load_model(f"{tmp_path / 'c'}#ema", tmp_path)
    copy_for_sampling(tmp_path / "c", tmp_path / "copy")
    assert _is_equal(load_model(f"{tmp_path / 'copy'}#ema-0.9990", tmp_path), models["ema-0.999"])


def test_sampling_settings_are_kept_and_checked(tmp_path):
    folder = tmp_path / "c"
    serving = ServingConfig(weights="model", sampling=SamplingConfig(guidance=3.0))
    save_checkpoint(
        folder, model=tiny_model("mar"), optimizer={}, progress=PROGRESS, serving=serving
    )
    assert load_checkpoint(folder).serving == serving
    copy_for_sampling(folder, tmp_path / "copy")  # A registered version has settings of its own.
    assert load_checkpoint(tmp_path / "copy").serving is None
    shutil.copyfile(folder / "serving.json", tmp_path / "copy" / "serving.json")
    with pytest.raises(FractalError, match=r"has no checksum of serving\.json"):
        load_checkpoint(tmp_path / "copy")
    (folder / "serving.json").write_text("{}")
    with pytest.raises(FractalError, match=r"serving\.json .* does not match its checksum"):
        load_checkpoint(folder)


def test_an_average_without_a_checksum_or_with_a_strange_name_is_refused(saved):
    shutil.copyfile(saved[0] / "model.safetensors", saved[0] / "ema-0.9.safetensors")
    with pytest.raises(FractalError, match=r"has no checksum of ema-0\.9\.safetensors"):
        load_checkpoint(saved[0])
    sums = json.loads((saved[0] / "checksums.json").read_text())
    for name in ("ema-1.5.safetensors", "ema-0.90.safetensors", "ema-0.9", "ema-x.safetensors"):
        _seal(saved[0], json.dumps(sums | {name: "0"}).encode())
        with pytest.raises(FractalError, match=f"the unknown file '{name}'"):
            load_checkpoint(saved[0])


def test_a_missing_average_is_an_error(saved, tmp_path):
    for name in ("ema", "ema-0.9"):
        with pytest.raises(FractalError, match="no moving average.*ema_decays"):
            load_model(f"{saved[0]}#{name}", tmp_path)
