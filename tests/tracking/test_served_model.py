"""The code of the registered model, without MLflow's server."""

from __future__ import annotations

import ast
import io
import json
import math
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from fractal_model.checkpoints.checkpoint import Progress, save_checkpoint
from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.serving import ServingConfig
from fractal_model.generation import shared_sampling
from fractal_model.generation.pictures import png_bytes
from fractal_model.generation.sample_images import collect_images
from fractal_model.generation.shared_sampling import BusyError, SharedSampling
from fractal_model.model.fractal import NO_CLASS, FractalModel
from fractal_model.sampling.sampler import Sampler
from fractal_model.tracking import registration, served_model
from fractal_model.tracking.served_model import MOST_ROWS, BadRequest
from tests.support import tiny_model

SETTINGS = SamplingConfig(guidance=3.0, logit_scale=1.2, iterations=(3, 2))
NAMES = ("plaice", "tench, Tinca tinca", "2 of hearts", "pike")

DEEP: list = []
for _ in range(10**5):
    DEEP = [DEEP]


@pytest.fixture
def served(tmp_path):
    return serve(tmp_path, NAMES)


def serve(tmp_path: Path, names: tuple[str, ...]) -> served_model.ServedFractalModel:
    model = tiny_model("mar")
    named = FractalModel(model.config.model_copy(update={"class_names": names}))
    named.load_state_dict(model.state_dict())
    progress = Progress(size="t", fingerprint="", position=0, steps=0)
    save_checkpoint(tmp_path / "c", model=named, optimizer={}, progress=progress)
    serving = ServingConfig(weights="model", sampling=SETTINGS)
    (tmp_path / "serving.json").write_text(serving.model_dump_json())
    artifacts = {"checkpoint": str(tmp_path / "c"), "serving": str(tmp_path / "serving.json")}
    served = served_model.ServedFractalModel()
    served.load_context(SimpleNamespace(artifacts=artifacts))
    return served


@pytest.fixture
def requests(monkeypatch):
    """A list with the number of images of each call of the sampler."""
    counts = []

    def count_and_sample(model, settings, labels, seeds):
        counts.append(len(labels))
        return collect_images(model, settings, labels, seeds)

    monkeypatch.setattr(shared_sampling, "collect_images", count_and_sample)
    return counts


def test_rows_without_settings_are_sampled_together(served, requests):
    images = served.predict(None, pd.DataFrame({"class": [0, 1, 2], "seed": [5, 6, 7]}))
    assert requests == [3]
    assert all(image.startswith(b"\x89PNG") for image in images)


def test_a_row_without_settings_uses_those_of_the_model(served):
    (image,) = served.predict(None, pd.DataFrame({"class": [2], "seed": [5]}))
    sampled = Sampler(tiny_model("mar"), SETTINGS)(torch.tensor([2]), [5])
    assert image == png_bytes(sampled[0])


def test_rows_of_equal_settings_are_sampled_together_and_keep_their_order(served, requests):
    rows = pd.DataFrame({"class": [0, 1, 0], "seed": [5, 6, 5], "guidance": [2.0, 3.0, 2.0]})
    images = served.predict(None, rows)
    assert sorted(requests) == [1, 2]
    assert images[0] == images[2] != images[1]


def test_a_server_that_is_too_busy_says_so(served, monkeypatch):
    def refuse(sampling, wanted):
        raise BusyError("9 images wait already: ask again in a while")

    monkeypatch.setattr(SharedSampling, "draw", refuse)
    with pytest.raises(BadRequest, match="9 images wait already") as raised:
        served.predict(None, pd.DataFrame({"class": [0], "seed": [5]}))
    assert raised.value.get_http_status_code() == 429
    assert json.loads(raised.value.serialize_as_json())["message"].startswith("9 images wait")


def test_a_wrong_request_has_status_400(served):
    with pytest.raises(BadRequest) as raised:
        served.predict(None, pd.DataFrame({"class": [9], "seed": [5]}))
    assert raised.value.get_http_status_code() == 400


def test_a_class_is_given_by_name_number_or_none(served):
    classes = [1, 1.0, "1", "tench, Tinca tinca", "none"]
    images = served.predict(None, pd.DataFrame({"class": classes, "seed": [5] * 5}))
    assert len(set(images[:4])) == 1
    unconditional = Sampler(tiny_model("mar"), SETTINGS)(torch.tensor([NO_CLASS]), [5])
    assert images[4] == png_bytes(unconditional[0])


def test_a_number_and_its_text_are_the_same_class(tmp_path):
    served = serve(tmp_path, ("1", "2", "3", "4"))
    classes = [4, 4.0, "4", "name:4", "number:3", 0, "number:0", "name:1"]
    images = served.predict(None, pd.DataFrame({"class": classes, "seed": [5] * 8}))
    assert len(set(images[:5])) == 1 and len(set(images[5:])) == 1
    for label in (2, 2.0, "2"):
        with pytest.raises(BadRequest, match=r"class '2' .* name of class 1 .*class 2 \('3'\)"):
            served.predict(None, pd.DataFrame({"class": [label], "seed": [5]}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class": 4}, "class '4' is unknown: this model knows 0 … 3"),
        ({"class": -1}, "class '-1' is unknown"),
        ({"class": 1.5}, "class is 1.5: expected a name, a number or 'none'"),
        ({"class": "tensh, Tinca tinca"}, "did you mean 'tench, Tinca tinca'"),
        ({"class": None}, "class is nan: expected a name"),
        ({"class": math.nan}, "class is nan: expected a name"),
        ({"class": True}, "class is True: expected a name"),
        ({"class": [1]}, "class is [1]: expected a name"),
        ({"class": DEEP}, "class is a huge list: expected a name"),
        ({"class": 10**5000}, "class is a huge int: expected a name"),
        ({"class": "9" * 5000}, "is unknown"),
        ({"seed": 10**5000}, "seed is a huge int: expected a whole number"),
        ({"seed": [10**5000]}, "seed is a huge list"),
        ({"guidance": 10**5000}, "guidance: "),
        ({"guidance": np.zeros(2)}, "guidance is array([0., 0.]): expected a number"),
        ({"seed": 1.5}, "seed is 1.5: expected a whole number"),
        ({"seed": True}, "seed is True: expected a whole number"),
        ({"seed": "1"}, "seed is '1': expected a whole number"),
        ({"seed": math.inf}, "seed is inf: expected a whole number"),
        ({"seed": 10**400}, "seed is 1000"),
        ({"guidance": True}, "guidance is True: expected a number"),
        ({"guidance": "2.0"}, "guidance is '2.0': expected a number"),
        ({"logit_scale": [1.0]}, "logit_scale is [1.0]: expected a number"),
        ({"seed": -1}, "seed is -1: expected a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"seed": math.nan}, "seed is nan"),
        ({"guidance": math.nan}, "guidance is missing: give it in every row, or in none"),
        ({"guidance": None}, "guidance is missing"),
        ({"guidance": math.inf}, "guidance: Input should be a finite number"),
        ({"guidance": -1.0}, "guidance: Input should be greater than or equal to 0, found -1.0"),
        ({"logit_scale": 0.0}, "logit_scale: Input should be greater than 0, found 0.0"),
    ],
)
def test_an_error_in_a_row_is_named_on_one_line(served, requests, change, message):
    valid = {"class": "pike", "seed": 0, "guidance": 1.0, "logit_scale": 1.0}
    with pytest.raises(BadRequest) as raised:
        served.predict(None, pd.DataFrame([valid, valid | change]))
    line = json.loads(raised.value.serialize_as_json())["message"]
    assert line == str(raised.value)
    assert line.startswith("row 1: ") and message in line
    assert "\n" not in line
    assert raised.value.get_http_status_code() == 400
    assert requests == []


VALID = {"class": 0, "seed": 0}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame([VALID | {"guidence": 2.0}]), "column 'guidence' is unknown, did you mean"),
        (pd.DataFrame([VALID | {"Seed": 2}]), "column 'Seed' is unknown, did you mean 'seed'"),
        (pd.DataFrame([VALID | {"size": 2}]), "column 'size' is unknown, known are class, seed"),
        (pd.DataFrame({"class": [0]}), "column seed is missing"),
        (pd.DataFrame(), "column class and seed is missing"),
        (pd.DataFrame([[0, 0, 1]], columns=["class", "seed", "seed"]), "'seed' appears 2 times"),
        (pd.DataFrame([VALID] * (MOST_ROWS + 1)), "1,001 rows, at most 1,000"),
        (pd.DataFrame({"class": 0, "seed": range(10**6)}), "has 1,000,000 rows"),
        ([[0, 0]], "column '0' is unknown"),
        ({"class": [0, 1], "seed": [0]}, "the request is no table"),
        (pd.read_csv(io.StringIO("class,seed\n0,0,5")), "one value longer than the header"),
        (pd.DataFrame(VALID, index=[1]), "without an index"),
        (7, "the request is no table"),
    ],
)
def test_wrong_columns_or_too_many_rows_are_refused(served, requests, table, message):
    with pytest.raises(BadRequest) as raised:
        served.predict(None, table)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert raised.value.get_http_status_code() == 400
    assert requests == []


def test_lists_by_column_are_a_valid_request(served):
    by_column = served.predict(None, {"class": [1, 2], "seed": [5, 6]})
    assert by_column == served.predict(None, pd.DataFrame({"class": [1, 2], "seed": [5, 6]}))


def test_the_requirements_name_every_package_that_the_code_imports():
    code = (
        "import sys, fractal_model.tracking.served_model; "
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('fractal_model')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set()
    for file in done.stdout.split(".py"):
        if file.strip():
            imported |= _top_level_imports(Path(f"{file.strip()}.py"))
    providers = packages_distributions()
    needed = {providers[name][0].lower() for name in imported if name in providers}
    assert {"torch", "pillow"} <= needed
    # MLflow adds itself, the model contains this package, and pydantic depends on its core.
    needed -= {"mlflow", "mlflow-tracing", "fractal-model", "pydantic_core", "pydantic-core"}
    assert needed <= {n.lower() for n in registration.SERVED_PACKAGES}


def _top_level_imports(file: Path) -> set[str]:
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
    return names
