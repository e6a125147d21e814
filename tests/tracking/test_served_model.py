"""The registered model's code, without MLflow's server."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from fractal_model.images import png_bytes
from fractal_model.sampling.sampler import Sampler
from fractal_model.sampling.settings import SamplingConfig
from fractal_model.tracking import registry, served_model
from fractal_model.training.checkpoint import Progress, save_checkpoint
from tests.conftest import tiny_model

SETTINGS = SamplingConfig(guidance=3.0, logit_scale=1.2, iterations=(3, 2))


@pytest.fixture
def served(tmp_path):
    model = tiny_model("mar")
    progress = Progress(size="t", fingerprint="", position=0, steps=0)
    save_checkpoint(tmp_path / "c", model=model, optimizer={}, progress=progress)
    (tmp_path / "sampling.json").write_text(SETTINGS.model_dump_json())
    artifacts = {"checkpoint": str(tmp_path / "c"), "sampling": str(tmp_path / "sampling.json")}
    found = served_model.ServedFractalModel()
    found.load_context(SimpleNamespace(artifacts=artifacts))
    return found


@pytest.fixture
def batches(monkeypatch):
    """The sizes of the batches that are sampled."""
    sizes = []

    class Counting(served_model.Sampler):
        def __call__(self, labels: torch.Tensor, seeds):
            sizes.append(len(labels))
            return super().__call__(labels, seeds)

    monkeypatch.setattr(served_model, "Sampler", Counting)
    return sizes


def test_rows_without_settings_are_sampled_once_together(served, batches):
    images = served.predict(None, pd.DataFrame({"class": [0, 1, 2], "seed": [5, 6, 7]}))
    assert batches == [3]
    assert all(image.startswith(b"\x89PNG") for image in images)


def test_a_row_is_sampled_as_the_size_is_where_it_does_not_say(served):
    (image,) = served.predict(None, pd.DataFrame({"class": [2], "seed": [5]}))
    sampled = Sampler(tiny_model("mar"), SETTINGS)(torch.tensor([2]), [5])
    assert image == png_bytes(sampled[0])


def test_rows_of_equal_settings_go_together_and_keep_their_order(served, batches):
    rows = pd.DataFrame(
        {"class": [0, 1, 0], "seed": [5, 6, 5], "guidance": [2.0, None, 2.0]}, index=[9, 9, 3]
    )
    images = served.predict(None, rows)
    assert sorted(batches) == [1, 2]
    assert images[0] == images[2] != images[1]


def test_its_requirements_name_every_package_that_its_code_imports():
    code = (
        "import sys, fractal_model.tracking.served_model; "
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('fractal_model')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set()
    for file in done.stdout.split(".py"):
        if file.strip():
            imported |= _imported_at_the_top(Path(f"{file.strip()}.py"))
    providers = packages_distributions()
    needed = {providers[name][0].lower() for name in imported if name in providers}
    assert {"torch", "pillow"} <= needed
    # MLflow names itself, our own code travels with the model, pydantic brings its core.
    needed -= {"mlflow", "mlflow-tracing", "fractal-model", "pydantic_core", "pydantic-core"}
    assert needed <= {n.lower() for n in registry.SERVED_PACKAGES}


def _imported_at_the_top(file: Path) -> set[str]:
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
    return names
