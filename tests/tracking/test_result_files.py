"""The files about a training and an evaluation that DVC tracks."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest

from fractal_model.common.errors import FractalError
from fractal_model.tracking.result_files import (
    read_model_file,
    write_evaluation_file,
    write_training_files,
)

URI = "models:/fractal-digits/1"
SUMS = {"model.safetensors": "0" * 64}


@pytest.fixture
def folder(tmp_path: Path, local_store: str) -> Path:
    """The files of a training with three reports and one held-out likelihood, in a new folder."""
    checkpoint = tmp_path / "registered/artifacts/checkpoint"
    checkpoint.mkdir(parents=True)
    (checkpoint / "checksums.json").write_text(json.dumps(SUMS))
    with mlflow.start_run() as run:
        for step, loss in enumerate((3.0, 2.5, 2.25), 1):
            mlflow.log_metrics({"epoch": step / 2, "loss": loss, "images_per_second": 9}, step=step)
        mlflow.log_metrics({"nll_bits_per_dim": 0.75, "nll_bits_per_dim_stderr": 0.01}, step=2)
    client = mlflow.MlflowClient()
    client.create_registered_model("fractal-digits")
    tags = {"fractal.fingerprint": "f" * 64, "fractal.training_run": run.info.run_id}
    client.create_model_version("fractal-digits", str(tmp_path / "registered"), tags=tags)
    write_training_files("digits", "1", tmp_path / "results")
    return tmp_path / "results"


def test_a_training_writes_its_model_last_numbers_and_curves(folder):
    texts = {file.name: file.read_text() for file in folder.iterdir()}
    assert json.loads(texts.pop("model.json")) == {
        "model": URI,
        "fingerprint": "f" * 64,
        "checksums": SUMS,
    }
    assert json.loads(texts.pop("training.json")) == {
        "training": {"loss": 2.25, "nll_bits_per_dim": 0.75, "nll_bits_per_dim_stderr": 0.01}
    }
    assert texts == {
        "loss.csv": "epoch,loss\n0.5,3.0\n1.0,2.5\n1.5,2.25\n",
        "held-out.csv": "epoch,nll_bits_per_dim\n1.0,0.75\n",
    }


def test_an_evaluation_writes_its_metrics_without_speeds(tmp_path):
    write_evaluation_file({"kid": 0.5, "fid": 34.5, "seconds_per_image": 0.2}, tmp_path / "new")
    text = (tmp_path / "new/metrics.json").read_text()
    assert text == '{\n  "fid": 34.5,\n  "kid": 0.5\n}\n'


def test_the_model_file_names_its_version(folder):
    assert read_model_file(str(folder / "model.json")) == URI


@pytest.mark.parametrize("source", [None, "models:/fractal-digits@champion", "run/best"])
def test_other_sources_are_unchanged(source):
    assert read_model_file(source) == source


def test_a_missing_model_file_is_named(tmp_path):
    with pytest.raises(FractalError, match=r"model\.json is missing: train the model"):
        read_model_file(str(tmp_path / "model.json"))


def test_another_file_of_that_name_is_refused(tmp_path):
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(
        FractalError, match="is not the file of a trained model: key 'model' is missing"
    ):
        read_model_file(str(tmp_path / "model.json"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("fingerprint", "e" * 64, "is not the model of .*: train it again.*train@digits"),
        ("model", "models:/fractal-digits/2", "has no version models:/fractal-digits/2"),
    ],
)
def test_the_store_must_have_the_model(folder, key, value, message):
    content = json.loads((folder / "model.json").read_text()) | {key: value}
    (folder / "model.json").write_text(json.dumps(content))
    with pytest.raises(FractalError, match=message):
        read_model_file(str(folder / "model.json"))
