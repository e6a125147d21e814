"""The registered model as MLflow, a process without this repository and HTTP clients use it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
import yaml
from fastapi.testclient import TestClient
from mlflow.pyfunc import scoring_server
from typer.testing import CliRunner

from fractal_model.checkpoints.checkpoint import Progress, load_checkpoint, save_checkpoint
from fractal_model.cli.app import app
from fractal_model.common.errors import FractalError
from fractal_model.config.params import load_params
from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.serving import ServingConfig
from fractal_model.generation.pictures import png_bytes
from fractal_model.sampling.sampler import Sampler
from fractal_model.tracking import registration, registry, served_model, store
from fractal_model.tracking.tags import FINGERPRINT_TAG, TRAINING_RUN_TAG
from tests.support import KINDS, REPOSITORY, tiny_model
from tests.support.mlflow_server import running_server
from tests.support.ports import free_ports
from tests.support.tiny_files import TINY

TAGS = {FINGERPRINT_TAG: "f" * 64, TRAINING_RUN_TAG: "a run"}


@dataclass(frozen=True)
class Registered:
    """Version 1 of fractal-digits: a tiny model with another moving average of its weights."""

    params: Path
    checkpoint: Path
    serving: ServingConfig
    uri: str

    @property
    def files(self) -> Path:
        return registry.fetch("digits", "1").checkpoint.parents[1]


def test_a_model_with_a_guide_is_not_registered(tmp_path):
    sampling = SamplingConfig(guide="models:/fractal-digits/1")
    serving = ServingConfig(weights="model", sampling=sampling)
    with pytest.raises(FractalError, match="the guide models:/fractal-digits/1, which is not stor"):
        registration.register("digits", tmp_path, serving=serving, tags=TAGS)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Registered:
    folder = tmp_path_factory.mktemp("registered")
    content = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    content["models"]["digits"].update(
        TINY, patch_sizes=list(KINDS["mar"]["patch_sizes"]), num_classes=4
    )
    content["sampling"]["digits"]["iterations"] = [3, 2]
    params = folder / "params.yaml"
    params.write_text(yaml.safe_dump(content))
    save_checkpoint(
        folder / "checkpoint",
        model=tiny_model("mar"),
        averages={"ema-0.9": tiny_model("mar", sharpen=2.0).state_dict()},
        optimizer={"state": torch.zeros(3)},
        progress=Progress(size="digits", fingerprint="f" * 64, position=1, steps=1),
    )
    settings = load_params(params)
    serving = settings.size("digits").serving
    uri = store.connect(settings.paths.outputs)
    with mlflow.start_run(
        experiment_id=store.get_or_create_experiment("digits", settings.paths.outputs)
    ):
        registration.register("digits", folder / "checkpoint", serving=serving, tags=TAGS)
    mlflow.MlflowClient().set_registered_model_alias("fractal-digits", "champion", "1")
    return Registered(params, folder / "checkpoint", serving, uri)


@pytest.fixture
def registered(first: Registered) -> Registered:
    """The registered version; MLflow is connected to its store again."""
    mlflow.set_tracking_uri(first.uri)
    return first


def _image(serving: ServingConfig, label: int, seed: int) -> bytes:
    model = tiny_model("mar", **({"sharpen": 2.0} if serving.weights != "model" else {}))
    return png_bytes(Sampler(model, serving.sampling)(torch.tensor([label]), [seed])[0])


def test_signature_example_and_requirements_are_set(registered):
    info = mlflow.models.get_model_info("models:/fractal-digits/1")
    assert info.signature.outputs.input_names() == ["png"]
    requirements = (registered.files / "requirements.txt").read_text().splitlines()
    assert f"torch=={torch.__version__.split('+')[0]}" in [r.split("+")[0] for r in requirements]
    assert all("==" in line for line in requirements)
    assert info.saved_input_example_info["type"] == "dataframe"


def test_the_description_links_to_the_run_that_made_the_version(registered):
    version = mlflow.MlflowClient().get_model_version("fractal-digits", "1")
    run = mlflow.get_run(version.run_id).info
    link = f"[{run.run_name}](#/experiments/{run.experiment_id}/runs/{run.run_id})"
    assert version.description == f"`digits`, trained here in the run {link}."


def test_only_an_evaluation_with_the_served_settings_ranks_the_version(registered):
    serving = registered.serving
    model_id = registry.logged_model_id("digits", "1")
    assert model_id and registration.ranked_model_id("digits", "1", serving) == model_id
    other = serving.sampling.model_copy(update={"guidance": serving.sampling.guidance + 1})
    swept = serving.model_copy(update={"sampling": other})
    assert registration.ranked_model_id("digits", "1", swept) is None
    assert registration.ranked_model_id("digits", None, serving) is None


def _ask_mlflows_server(**request: object) -> str:
    """Let MLflow itself parse a bad request, without a socket, and return the error's message."""
    app = scoring_server.init(mlflow.pyfunc.load_model("models:/fractal-digits@champion"))
    answer = TestClient(app).post("/invocations", **request)
    assert answer.status_code == 400
    assert "\n" not in answer.json()["message"]
    return answer.json()["message"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1.5}, "row 0: seed is 1.5"),
        ({"seed": True}, "row 0: seed is True"),
        ({"guidence": 2.0}, "column 'guidence' is unknown, did you mean 'guidance'?"),
    ],
)
def test_mlflows_server_refuses_values_that_mlflow_would_cast_or_drop(registered, change, message):
    body = {"dataframe_records": [{"class": 1, "seed": 1} | change]}
    assert message in _ask_mlflows_server(json=body)


@pytest.mark.parametrize("params", [{"guidance": 3.0}, {"temperature": 1}])
def test_params_are_refused(registered, params):
    body = {"dataframe_records": [{"class": 1, "seed": 1}], "params": params}
    assert "send guidance or logit_scale as a column" in _ask_mlflows_server(json=body)


def test_a_csv_row_that_is_longer_than_its_header_is_refused(registered):
    csv = {"content": "class,seed\n1,0,5\n", "headers": {"Content-Type": "text/csv"}}
    assert "one value longer than the header" in _ask_mlflows_server(**csv)


def test_the_example_request_is_answered(registered):
    model = mlflow.pyfunc.load_model("models:/fractal-digits@champion")
    assert model.input_example["guidance"].tolist() == [registered.serving.sampling.guidance] * 2
    images = model.predict(model.input_example)
    assert images == [_image(registered.serving, 0, seed) for seed in (0, 1)]


def test_registering_samples_nothing(registered, monkeypatch):
    """Sampling from a large model would take hours on a CPU."""

    def never(*arguments):
        pytest.fail("the model was loaded")

    monkeypatch.setattr(served_model.ServedFractalModel, "load_context", never)
    monkeypatch.setattr(Sampler, "__call__", never)
    outputs = load_params(registered.params).paths.outputs
    with mlflow.start_run(experiment_id=store.get_or_create_experiment("digits", outputs)):
        registration.register(
            "quick", registered.checkpoint, serving=registered.serving, tags={"a": "b"}
        )
    assert registry.versions("quick")[0].tags == {"a": "b"}


def test_no_registered_file_is_a_pickle(registered):
    """Names and contents are checked; a torch file is a zip archive that holds a pickle."""
    assert (registered.checkpoint / "optimizer.pt").is_file()
    files = [file for file in registered.files.rglob("*") if file.is_file()]
    assert {"model.safetensors", "ema-0.9.safetensors", "served_model.py"} <= {
        f.name for f in files
    }
    for file in files:
        assert file.suffix not in (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib"), file
        assert not zipfile.is_zipfile(file), file
        assert not file.read_bytes().startswith(b"\x80"), file  # A pickle of protocol 2 or later.


def test_the_registered_model_draws_the_same_image_as_the_command(registered, tmp_path):
    options = ["--classes", "2", "--n", "2", "--seed", "5", "--params", registered.params]
    words = ["sample", "--model", "models:/fractal-digits@champion", "--out", tmp_path, *options]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exception is None, done.output
    mlflow.set_tracking_uri(registered.uri)
    model = mlflow.pyfunc.load_model("models:/fractal-digits@champion")
    rows = pd.DataFrame({"class": [2, 2, 2], "seed": [5, 6, 5]})
    images = model.predict(rows)
    assert images[:2] == [(tmp_path / f"{n}.png").read_bytes() for n in (0, 1)]
    assert images[0] == images[2] != images[1]


def test_changed_settings_are_registered_with_the_same_weights(registered):
    """The weights and guidance that are evaluated are also served."""
    assert registration.reuse("digits", "e" * 64, registered.serving) is None
    assert registration.reuse("digits", "f" * 64, registered.serving) == ("1", False)
    registry.tag_version("digits", "1", "fractal.evaluation.abc", "a run")
    sampling = registered.serving.sampling.model_copy(update={"guidance": 4.0})
    changed = ServingConfig(weights="ema-0.9", sampling=sampling)
    reason = registration.serving_difference("digits", "1", changed)
    assert "weights model instead of ema-0.9, guidance 2.0 instead of 4.0" in reason

    again, is_new = registration.reuse("digits", "f" * 64, changed)
    assert (again != "1", is_new) == (True, True)
    assert registry.aliased_version("digits", registry.CANDIDATE) == again
    assert registration.serving_difference("digits", again, changed) == ""
    assert registry.version_tags("digits", again) == TAGS
    assert registration.reuse("digits", "f" * 64, changed) == (again, False)
    ours, theirs = (load_checkpoint(registry.fetch("digits", v).checkpoint) for v in ("1", again))
    assert all(ours.weights[name].equal(theirs.weights[name]) for name in ours.weights)
    model = mlflow.pyfunc.load_model(f"models:/fractal-digits/{again}")
    (image,) = model.predict(pd.DataFrame({"class": [3], "seed": [9]}))
    assert image == _image(changed, 3, 9) != _image(registered.serving, 3, 9)


@pytest.mark.parametrize("weights", ["ema", "ema-0.9"])
def test_a_missing_moving_average_is_not_registered(registered, tmp_path, weights):
    progress = Progress(size="digits", fingerprint="", position=1, steps=1)
    save_checkpoint(tmp_path / "c", model=tiny_model("mar"), optimizer=None, progress=progress)
    averaged = registered.serving.model_copy(update={"weights": weights})
    with pytest.raises(
        FractalError, match=f"evaluation.digits.weights {weights}: .*no moving average"
    ):
        registration.register("digits", tmp_path / "c", serving=averaged, tags={})


ELSEWHERE = """
import importlib.util, sys
sys.meta_path = [f for f in sys.meta_path if "editable" not in str(getattr(f, "__module__", f))]
sys.path = [folder for folder in sys.path if folder not in ("", {repository!r})]
sys.path_importer_cache.clear()
assert importlib.util.find_spec("fractal_model") is None, "this repository can still be imported"
import mlflow, pandas
mlflow.set_tracking_uri({uri!r})
model = mlflow.pyfunc.load_model("models:/fractal-digits@champion")
rows = pandas.DataFrame({{"class": [3, 2, 3], "seed": [0, 1, 0], "guidance": [2.0, 1.0, 2.0]}})
images = model.predict(rows)
assert [image[:4] for image in images] == [b"\\x89PNG"] * 3
assert images[0] == images[2] != images[1]
print(sys.modules["fractal_model"].__file__)
print(images[0].hex())
"""


def test_the_registered_model_works_without_this_repository(registered):
    code = ELSEWHERE.format(repository=str(REPOSITORY), uri=registered.uri)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    file, image = done.stdout.split()
    assert Path(file).is_relative_to(registered.files / "code")
    assert bytes.fromhex(image) == _image(registered.serving, 3, 0)


def _post(url: str, body: dict) -> tuple[int, dict]:
    request = urllib.request.Request(
        f"{url}/invocations",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_mlflows_server_answers_real_requests(registered, tmp_path):
    port = free_ports(("model",))["model"]
    command = ["mlflow", "models", "serve", "--env-manager", "local"]
    command += ["--model-uri", "models:/fractal-digits@champion"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    url = f"http://127.0.0.1:{port}"
    with running_server(command, f"{url}/ping", tmp_path, MLFLOW_TRACKING_URI=registered.uri):
        records = [{"class": 3, "seed": 0}, {"class": "2", "seed": 1}, {"class": 3, "seed": 0}]
        status, answer = _post(url, {"dataframe_records": records})
        assert status == 200, answer
        images = [base64.b64decode(text) for text in answer["predictions"]]
        expected = [_image(registered.serving, *of) for of in ((3, 0), (2, 1), (3, 0))]
        assert images == expected
        for change, message in (
            ({"class": 4}, "class '4' is unknown: this model knows 0 … 3"),
            ({"class": "cat"}, "class 'cat' is unknown"),
            ({"seed": -1}, "seed is -1"),
            ({"guidance": float("nan")}, "guidance is missing: give it in every row"),
        ):
            status, answer = _post(url, {"dataframe_records": [records[0] | change]})
            assert status == 400
            assert answer["message"].startswith("row 0: ") and message in answer["message"]
            assert "\n" not in answer["message"]
