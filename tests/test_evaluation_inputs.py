"""Where an evaluation keeps its parts."""

from __future__ import annotations

from pathlib import Path

from fractal_model import evaluation_inputs
from fractal_model.evaluation_inputs import EvaluationInputs
from fractal_model.params import load_params
from tests.conftest import tiny_model
from tests.metrics.test_protocol import protocol

PARAMS = Path(__file__).parents[1] / "params.yaml"


def test_parts_that_other_libraries_made_are_not_gone_on_with(monkeypatch):
    inputs = EvaluationInputs(load_params(PARAMS), "digits")
    model = tiny_model("mar")
    folder = inputs.folder("digits", protocol(), model)
    assert inputs.folder("digits", protocol(), model) == folder
    monkeypatch.setattr(evaluation_inputs, "libraries", lambda: {"torch": "0.1"})
    assert inputs.folder("digits", protocol(), model) != folder
