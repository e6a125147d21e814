"""Fuzzing of files and requests: a wrong one gives a one-line error, no traceback and no hang.

Decided here: cases are derived from the tests' names alone, so that every run tries the same cases.
Quick tests try few of them. Slow tests try thousands, each of which may allocate at most MEMORY.
A case that hangs ends in pytest's own timeout.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers

from fractal_model.checkpoints.checkpoint import (
    CHECKSUMS,
    MARKER,
    Progress,
    load_checkpoint,
    save_checkpoint,
)
from fractal_model.checkpoints.importing import read_published
from fractal_model.common.errors import FractalError
from fractal_model.common.files import sha256
from fractal_model.config.params import load_params
from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.serving import ServingConfig
from fractal_model.data.manifest import read_manifest
from fractal_model.data.sources.parquet import list_parquet
from fractal_model.evaluation.sample_set import open_sample_set
from fractal_model.generation import shared_sampling
from fractal_model.generation.classes import parse_classes
from fractal_model.generation.editing import read_image
from fractal_model.metrics.adm_statistics import load_published
from fractal_model.metrics.dinov2 import load_dinov2
from fractal_model.metrics.inception import load_inception
from fractal_model.metrics.reference import load_reference
from fractal_model.model.fractal import FractalModel
from fractal_model.tracking import served_model
from fractal_model.tracking.served_model import BadRequest
from tests.support import tiny_config, tiny_model
from tests.support.untrusted import (
    JSON,
    changed_settings,
    changed_text,
    damaged,
    memory_bound,
    npz_files,
)

MEMORY = 128 << 20
QUICK, THOROUGH = 25, 500
EXAMPLES = pytest.mark.parametrize(
    "examples", [QUICK, pytest.param(THOROUGH, marks=pytest.mark.slow)]
)


def try_all(cases: st.SearchStrategy, examples: int, read: Callable[[object], object]) -> None:
    """Call `read` with each case, and require that any error is the package's own, on one line."""

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def test(case: object) -> None:
        try:
            with memory_bound(MEMORY) if examples == THOROUGH else nullcontext():
                read(case)
        except (FractalError, BadRequest) as error:
            text = str(error)
            assert text and "\n" not in text and len(text) < 10_000, text
            assert text.encode(), "it cannot be printed"

    # Without this Hypothesis also draws constants from the modules that are loaded.
    no_constants = patch.object(providers, "_get_local_constants", providers.Constants)
    with no_constants:
        test()


def reader(file: Path, read: Callable[[Path], object]) -> Callable[[str | bytes], object]:
    """A function that writes a case to `file` and reads it with `read`."""

    def write_and_read(content: str | bytes) -> object:
        if isinstance(content, str):
            content = content.encode("utf-8", "surrogatepass")
        file.write_bytes(content)
        return read(file)

    return write_and_read


@EXAMPLES
@pytest.mark.parametrize("cases", [changed_text(), changed_settings()], ids=["text", "values"])
def test_params_yaml(tmp_path, cases, examples):
    try_all(cases, examples, reader(tmp_path / "params.yaml", load_params))


@EXAMPLES
def test_classes(examples):
    names = ("plaice", "tench, Tinca tinca", "2 of hearts", "plaice")
    config = tiny_config("mar").model_copy(update={"class_names": names})
    words = st.sampled_from([*names, "none", "0", "3", "-1", "٣", "9" * 5000, ",", " ", "\0", "²"])
    text = st.lists(words | st.text(max_size=8), max_size=6).map(",".join)
    try_all(text, examples, lambda classes: parse_classes(classes, config))


def draw_nothing(model, settings, labels, seeds):
    return torch.zeros(len(labels), 3, 4, 4, dtype=torch.uint8)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A served model whose images are black."""
    monkeypatch.setattr(shared_sampling, "collect_images", draw_nothing)
    progress = Progress(size="t", fingerprint="", position=0, steps=0)
    save_checkpoint(tmp_path / "c", model=tiny_model("mar"), optimizer={}, progress=progress)
    serving = ServingConfig(weights="model", sampling=SamplingConfig())
    (tmp_path / "serving.json").write_text(serving.model_dump_json())
    artifacts = {"checkpoint": str(tmp_path / "c"), "serving": str(tmp_path / "serving.json")}
    model = served_model.ServedFractalModel()
    model.load_context(SimpleNamespace(artifacts=artifacts))
    return model


@EXAMPLES
def test_served_requests(served, examples):
    cell = JSON | st.integers(0, 3) | st.sampled_from([1.5, 2**32, 10**300, "none"])
    columns = st.sampled_from(["class", "seed", "guidance", "logit_scale", "guidence", "", "0"])
    required = {"class": st.integers(0, 3) | cell, "seed": st.integers(0, 9) | cell}
    row = st.fixed_dictionaries(required, optional={"guidance": cell, "logit_scale": cell})
    records = st.lists(row | st.dictionaries(columns, cell), max_size=4)
    try_all(records, examples, lambda rows: served.predict(None, pd.DataFrame(rows)))


@EXAMPLES
def test_reference_files(tmp_path, examples):
    names = ("mean", "covariance", "features", "format_version", "count", "source", "dataset")
    read = reader(tmp_path / "r.npz", load_reference)
    try_all(npz_files(names), examples, read)


@EXAMPLES
def test_files_of_published_statistics(tmp_path, examples):
    read = reader(tmp_path / "adm.npz", lambda file: load_published(file, 4))
    try_all(npz_files(("mu", "sigma", "arr_0", "mu.npy")), examples, read)


def _published(model: FractalModel) -> bytes:
    buffer = io.BytesIO()
    torch.save({"model": {"fake_latent": model.state_dict()["null_embedding"]}}, buffer)
    return buffer.getvalue()


def _with_pickle(code: bytes) -> bytes:
    """An archive as torch.save writes it, with `code` as its pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", code)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return buffer.getvalue()


@EXAMPLES
def test_published_checkpoints(tmp_path, examples):
    good = _published(tiny_model("mar"))
    pickles = (JSON.map(lambda value: pickle.dumps(value, 2)) | st.binary(max_size=60)).map(
        lambda code: _with_pickle(code)
    )
    read = reader(tmp_path / "c.pth", lambda file: read_published(file, lambda done: None))
    try_all(damaged(good) | pickles | st.binary(max_size=60), examples, read)


@EXAMPLES
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_exported_models(tmp_path, name, examples):
    tiny_model("mar").save_pretrained(tmp_path)
    content = (tmp_path / name).read_bytes()
    cases = damaged(content[:2000]).map(lambda head: head + content[2000:]) | damaged(content)
    read = reader(tmp_path / name, lambda file: FractalModel.from_pretrained(file.parent))
    try_all(cases, examples, read)


@EXAMPLES
def test_checkpoints(tmp_path, examples):
    """The checksums of a damaged file are correct, so that its content is read."""
    progress = Progress(size="t", fingerprint="", position=0, steps=0)
    save_checkpoint(tmp_path / "c", model=tiny_model("mar"), optimizer={}, progress=progress)
    files = sorted(os.listdir(tmp_path / "c"))
    contents = {name: (tmp_path / "c" / name).read_bytes() for name in files}

    def read(case: tuple[str, bytes]) -> object:
        folder = tmp_path / "c"
        for name, content in contents.items():
            (folder / name).write_bytes(case[1] if name == case[0] else content)
        if case[0] not in (CHECKSUMS, MARKER):
            sums = {
                name: sha256(folder / name) for name in files if name not in (CHECKSUMS, MARKER)
            }
            (folder / CHECKSUMS).write_text(json.dumps(sums))
        if case[0] != MARKER:
            (folder / MARKER).write_text(sha256(folder / CHECKSUMS))
        return load_checkpoint(folder)

    cases = st.sampled_from(files).flatmap(
        lambda name: st.tuples(st.just(name), damaged(contents[name]) | st.binary(max_size=30))
    )
    try_all(cases, examples, read)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "read",
    [
        load_params,
        load_reference,
        lambda file: load_published(file, 64),
        lambda file: read_published(file, lambda done: None),
        lambda file: read_image(file, 8),
        lambda file: open_sample_set(file.rename(file.with_suffix(".npz"))),
        lambda file: open_sample_set(file.rename(file.parent / "labels.npy").parent),
        load_dinov2,
        load_inception,
        lambda file: list_parquet(
            file.rename(file.parent / "train-0.parquet").parent, lambda n: None, imagenet=False
        ),
        lambda file: read_manifest(file.rename(file.parent / "manifest.json").parent),
    ],
)
def test_a_pipe_is_refused_at_once(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FractalError, match="not a regular file") as raised:
        read(tmp_path / "pipe")
    assert "\n" not in str(raised.value)
