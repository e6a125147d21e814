"""`fractal evaluate`: models, folders and arrays of samples, JSON, and errors."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from fractal_model.cli.app import app
from fractal_model.common.errors import FractalError
from fractal_model.data.writing import write_prepared
from fractal_model.generation.sample_files import open_writer
from fractal_model.parallel.parts import map_in_this_process
from fractal_model.parallel.stored_parts import StoredParts
from tests.support import random_images
from tests.support.pixel_features import use_pixels_as_features
from tests.support.tiny_files import save_tiny

SAMPLE_METRICS = {"fid", "fid_stderr", "kid", "kid_stderr", "precision", "recall"}
LIKELIHOODS = {"nll_bits_per_dim", "nll_conditional_bits_per_dim"}
MODEL_METRICS = {
    *SAMPLE_METRICS,
    *LIKELIHOODS,
    *(f"{name}_stderr" for name in LIKELIHOODS),
    "class_agreement",
    "seconds_per_image",
    "images_per_second",
}


@pytest.fixture
def quick(monkeypatch):
    use_pixels_as_features(monkeypatch)


@pytest.fixture
def place(base, quick):
    """The project with a reference of the quick network."""
    run(base, "data", "reference", "noise")
    return base


@pytest.fixture(scope="module")
def base(workplace, tmp_path_factory):
    """A project with settings, a data set and a model."""
    folder = tmp_path_factory.mktemp("evaluating")
    content = yaml.safe_load(workplace.params.read_text())
    content["evaluation"]["digits"].update(
        likelihood_passes=2,
        samples_per_class=4,
        preview_per_class=2,
        kid_subset_size=5,
        kid_subsets=3,
        fid_resamples=3,
    )
    content["training"]["digits"]["dataset"] = "noise"
    content["pipeline"] = {}
    content["metrics"]["statistics_images"] = {}
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    pixels = random_images(20, size=4).permute(0, 2, 3, 1).numpy()
    examples = [(image, number % 4) for number, image in enumerate(pixels)]
    write_prepared(
        folder / "data" / "noise",
        dataset="noise",
        source="random numbers",
        preprocessing="none",
        resolution=4,
        class_names=[f"kind {i}" for i in range(4)],
        splits={"train": examples[:12], "validation": examples[12:]},
    )
    save_tiny(folder / "model")
    return folder


def run(folder, *words):
    done = CliRunner().invoke(
        app, [*(str(word) for word in words), "--params", str(folder / "params.yaml")]
    )
    if done.exception is not None:
        raise done.exception
    return done


def evaluate(folder, source, *words):
    return run(folder, "evaluate", source, "--dataset", "noise", *words)


def as_json(folder, source, *words):
    """Return standard output, which must be one JSON object and nothing else."""
    return json.loads(evaluate(folder, source, "--json", *words).stdout)


def samples(out, labels, size=4):
    images = random_images(len(labels), size=size, seed=1)
    writer = open_writer(
        out, torch.tensor(labels), image_size=size, per_class=4, request="a request"
    )
    writer.add(range(len(labels)), images)
    writer.finish()
    return out


BALANCED = [label for label in range(4) for _ in range(4)]


def test_a_model_gets_all_metrics_and_continues_from_stored_parts(place):
    result = as_json(place, place / "model")
    assert set(result["metrics"]) == MODEL_METRICS
    assert set(result["absent"]) == {"inception_score", "fd_dinov2"}
    record = result["protocol"]
    assert record["model"] == "model" and record["protocol"]["samples_per_class"] == 4
    assert len(record["checksum"]) == len(record["model_checksum"]) == 64
    again = as_json(place, place / "model", "--workers", 0)
    assert again["metrics"] == result["metrics"]
    assert again["protocol"]["hardware"]["workers"] == 1, "as many as this machine has room for"
    printed = evaluate(place, place / "model", "--preview").stdout
    for text in ("fid_8", "fd_dinov2_8 is absent", "nll_bits_per_dim"):
        assert text in printed


def drawn(folder):
    """Return the 16 images of a project's only evaluation as bytes."""
    (samples,) = (folder / "outputs" / "evaluations").glob("*/samples")
    return StoredParts(samples, map_in_this_process).rows(range(16), 3 * 4 * 4).numpy().tobytes()


@pytest.mark.slow
def test_two_workers_give_the_same_numbers_and_images(base, tmp_path):
    """With the real network, and a new project for each, so that no part is reused."""
    metrics, images = [], []
    for workers in (1, 2):
        folder = tmp_path / f"with {workers}"
        shutil.copytree(base, folder, ignore=shutil.ignore_patterns("outputs", "*.npz"))
        run(folder, "data", "reference", "noise")
        metrics.append(as_json(folder, folder / "model", "--workers", workers)["metrics"])
        images.append(drawn(folder))
    assert images[0] == images[1]
    for name in MODEL_METRICS - {"seconds_per_image", "images_per_second"}:
        assert metrics[1][name] == pytest.approx(metrics[0][name], abs=1e-6), name


@pytest.mark.parametrize("name", ["folder", "x.npz"])
def test_samples_are_compared_with_the_data_set(place, tmp_path, name):
    result = as_json(place, samples(tmp_path / name, BALANCED))
    assert set(result["metrics"]) == {*SAMPLE_METRICS, "class_agreement"}
    assert result["protocol"]["protocol"]["images"] is None
    assert result["absent"]["seconds_per_image"] == "the images were not sampled here"


def test_samples_of_fractal_sample_record_their_settings(place, tmp_path):
    words = ("--classes", "0,1,2,3", "--n", 4, "--seed", 7, "--guidance", 3, "--logit-scale", 1)
    out = tmp_path / "x"
    run(place, "sample", "--model", place / "model", *words, "--out", out)
    record = as_json(place, out)["protocol"]
    assert record["protocol"]["images"]["seed"] == 7 and len(record["model_checksum"]) == 64
    assert record["protocol"]["images"]["sampling"]["guidance"] == 3
    (out / "request.json").write_text('{"images": 1}')
    with pytest.raises(FractalError, match="request.json was written by another") as raised:
        evaluate(place, out)
    assert "\n" not in str(raised.value)


def test_a_preview_takes_any_number_of_samples(place, tmp_path):
    out = samples(tmp_path / "x", [0, 1, 2, 3, 0, 1, 2, 3])
    with pytest.raises(FractalError, match="8 images, the protocol of noise asks for 16"):
        evaluate(place, out)
    assert "fid_8" in as_json(place, out, "--preview")["metrics"]


def test_a_moving_average_is_chosen_by_the_model_or_by_params_yaml(place, tmp_path):
    save_tiny(tmp_path / "averaged", averages=("ema-0.5", "ema-0.9"))
    model, named = (as_json(place, f"{tmp_path / 'averaged'}{end}") for end in ("", "#ema-0.9"))
    assert named["protocol"]["model"] == model["protocol"]["model"] == "averaged"
    assert named["protocol"]["protocol"]["images"]["weights"] == "ema-0.9"
    assert named["metrics"]["nll_bits_per_dim"] != model["metrics"]["nll_bits_per_dim"]
    content = yaml.safe_load((place / "params.yaml").read_text())
    content["training"]["digits"]["ema_decays"] = [0.5, 0.9]
    content["evaluation"]["digits"]["weights"] = "ema-0.9"
    content["paths"].update(data=str(place / "data"), outputs=str(tmp_path / "outputs"))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    configured = as_json(tmp_path, tmp_path / "averaged")
    assert configured["protocol"]["checksum"] == named["protocol"]["checksum"]
    assert configured["protocol"]["model_checksum"] == named["protocol"]["model_checksum"]
    with pytest.raises(FractalError, match=r"choose #ema-0\.5 or #ema-0\.9$"):
        evaluate(place, f"{tmp_path / 'averaged'}#ema")


@pytest.mark.parametrize(
    ("labels", "size", "message"),
    [
        ([*BALANCED[:-1], 0], 4, "is not balanced"),
        (BALANCED, 8, "images of 8 px, the data set noise of 4 px"),
    ],
)
@pytest.mark.parametrize("preview", [(), ("--preview",)])
def test_samples_of_another_protocol_are_refused(place, tmp_path, labels, size, message, preview):
    out = samples(tmp_path / "x", labels, size)
    with pytest.raises(FractalError, match=message):
        evaluate(place, out, *preview)


@pytest.mark.parametrize(
    ("source", "words", "message"),
    [
        ("none", (), "none holds no samples: give a folder"),
        ("model#ema", (), "in the checkpoint there is no moving average"),
        ("model#ema-2", (), "'ema-2' names no weights"),
        ("model", ("--dataset", "other"), "no prepared data set at"),
        ("model", ("--size", "mar-xl"), "size 'mar-xl' is unknown"),
        ("model", ("--size", "mar-l"), "has length 3: this model takes 2"),
        ("model", ("--workers", -1), "number of workers is -1: give 1 or more, or 0"),
    ],
)
def test_a_wrong_model_or_option_is_refused(place, source, words, message):
    with pytest.raises(FractalError, match=message):
        evaluate(place, place / source, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "neither --size nor --dataset is given"),
        (("model",), "neither --size nor --dataset is given"),
        (("--dataset", "noise"), "--dataset noise is given without a model or samples"),
    ],
)
def test_what_to_evaluate_must_be_named(place, words, message):
    with pytest.raises(FractalError, match=message):
        run(place, "evaluate", *words)


def test_a_reference_of_another_network_is_refused(place, tmp_path):
    file = place / "data" / "noise-reference.npz"
    whole = file.read_bytes()
    try:
        with np.load(file) as content:
            changed = dict(content) | {"weights_checksum": "sha1:another"}
        np.savez(file, **changed)
        with pytest.raises(FractalError, match="belong to another network"):
            evaluate(place, samples(tmp_path / "x", BALANCED))
        with pytest.raises(FractalError, match="belong to another network"):
            evaluate(place, place / "model")
    finally:
        file.write_bytes(whole)
