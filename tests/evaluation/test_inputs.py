"""The folder of an evaluation's parts, and the files that its workers need."""

from __future__ import annotations

import fractal_model.evaluation.inputs as inputs_module
from fractal_model.config.params import load_params
from fractal_model.evaluation.inputs import EvaluationInputs
from tests.support import REPOSITORY, tiny_model
from tests.support.protocols import protocol

PARAMS = REPOSITORY / "params.yaml"


def test_parts_computed_with_other_library_versions_are_not_used(monkeypatch):
    inputs = EvaluationInputs(load_params(PARAMS), "digits")
    model = tiny_model("mar")
    folder = inputs.folder("digits", protocol(), model)
    assert inputs.folder("digits", protocol(), model) == folder
    monkeypatch.setattr(inputs_module, "library_versions", lambda: {"torch": "0.1"})
    assert inputs.folder("digits", protocol(), model) != folder


def test_workers_on_other_machines_need_local_images_and_own_weights(tmp_path):
    params = load_params(PARAMS)
    manifest = PARAMS.parent / "data/digits/manifest.json"
    assert EvaluationInputs(params, "digits").files == (manifest,), "Inception is in a package"
    i, d = tmp_path / "i.pth", tmp_path / "d.pth"
    weights = {"inception_weights": str(i), "dinov2_weights": str(d)}
    metrics = params.metrics.model_copy(update=weights)
    paths = params.paths.model_copy(update={"remote": {"digits": "s3://bucket/digits"}})
    remote = params.model_copy(update={"metrics": metrics, "paths": paths})
    assert EvaluationInputs(remote, "digits").files == (i, d)
