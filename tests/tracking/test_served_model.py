"""The registered model's code, without MLflow's server."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from fractal_model.images import png_bytes
from fractal_model.sampling.sampler import Sampler
from fractal_model.sampling.settings import SamplingConfig
from fractal_model.tracking import served_model
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
