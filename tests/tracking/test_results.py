"""Which evaluations of the store are in the results, and what an empty store says."""

from __future__ import annotations

import mlflow
import pytest
from typer.testing import CliRunner

from fractal_model.cli.app import app
from fractal_model.common.errors import FractalError
from fractal_model.evaluation.protocol import Record
from fractal_model.tracking import store
from fractal_model.tracking.descriptions import describe_run
from fractal_model.tracking.evaluations import evaluations
from fractal_model.tracking.tags import (
    KIND_TAG,
    NOTE_TAG,
    PROTOCOL_TAG,
    SIZE_TAG,
    VERSION_TAG,
)
from tests.support import REPOSITORY
from tests.support.evaluated_rows import protocol


@pytest.fixture
def experiment(tmp_path, monkeypatch) -> str:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store.connect(tmp_path)
    return store.get_or_create_experiment("digits", tmp_path)


def log(
    experiment: str, version: str, fid: float, *, kept: Record | None, kind="evaluate", name=None
) -> str:
    tags = {KIND_TAG: kind, SIZE_TAG: "digits", VERSION_TAG: version}
    tags[PROTOCOL_TAG] = kept.checksum if kept else "older"
    with mlflow.start_run(experiment_id=experiment, tags=tags, run_name=name) as run:
        mlflow.log_metric("fid", fid)
        if kept:
            mlflow.log_dict(kept.model_dump(mode="json"), "protocol.json")
    return run.info.run_id


def record(**changes: object) -> Record:
    return Record.now(protocol(**changes), model="models:/fractal-digits/1", version="1")


def test_the_newest_of_each_version_and_protocol(experiment):
    log(experiment, "1", 50.0, kept=record())
    newest = log(experiment, "1", 40.0, kept=record())
    preview = log(experiment, "1", 70.0, kept=record(samples_per_class=5))
    other = log(experiment, "2", 30.0, kept=None)
    log(experiment, "2", 1.0, kept=record(), kind="train")
    failed = log(experiment, "3", 2.0, kept=record())
    mlflow.MlflowClient().set_terminated(failed, "FAILED")
    found = {one.run: one for one in evaluations()}
    assert found.keys() == {newest, preview, other}
    assert found[newest].values == {"fid": 40.0}
    assert found[newest].model == "fractal-digits version 1"
    assert found[preview].protocol.samples == 50
    assert found[other].protocol is None


def test_a_checkpoint_under_two_protocols_has_two_rows(experiment):
    first = log(experiment, "", 50.0, kept=record(), name="evaluate-digits-abc")
    log(experiment, "", 60.0, kept=record(), name="evaluate-digits-abd")
    other = log(experiment, "", 40.0, kept=record(kid_subsets=9), name="evaluate-digits-abc")
    newest = log(experiment, "", 30.0, kept=record(), name="evaluate-digits-abc")
    found = {one.run for one in evaluations()}
    assert {newest, other} < found and first not in found and len(found) == 3


def test_an_empty_store_says_what_to_do(tmp_path):
    (tmp_path / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    words = ["results", "--params", str(tmp_path / "params.yaml")]
    with pytest.raises(FractalError, match=r"no evaluated model: evaluate one with `python -m fl"):
        CliRunner().invoke(app, words, catch_exceptions=False)


def test_experiments_and_runs_say_what_they_are(experiment):
    assert "fractal.protocol" in mlflow.get_experiment(experiment).tags[NOTE_TAG]
    for kind in ("train", "evaluate", "import", "sweep"):
        text = describe_run(kind, "mar-l", "imagenet256")
        assert "fractal-mar-l" in text and "imagenet256" in text and "{" not in text
