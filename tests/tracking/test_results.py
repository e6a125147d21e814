"""Evaluations of a store that the results show, and the error of an empty store."""

from __future__ import annotations

import mlflow
import pytest
from typer.testing import CliRunner

from fractal_model.cli.app import app
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
    experiment: str, version: str, fid: float, *, record: Record | None, kind="evaluate", name=None
) -> str:
    tags = {KIND_TAG: kind, SIZE_TAG: "digits", VERSION_TAG: version}
    tags[PROTOCOL_TAG] = record.checksum if record else "older"
    with mlflow.start_run(experiment_id=experiment, tags=tags, run_name=name) as run:
        mlflow.log_metric("fid", fid)
        if record:
            mlflow.log_dict(record.model_dump(mode="json"), "protocol.json")
    return run.info.run_id


def new_record(**changes: object) -> Record:
    return Record.now(protocol(**changes), model="models:/fractal-digits/1", version="1")


def test_results_have_the_newest_evaluation_of_each_version_and_protocol(experiment):
    log(experiment, "1", 50.0, record=new_record())
    newest = log(experiment, "1", 40.0, record=new_record())
    preview = log(experiment, "1", 70.0, record=new_record(samples_per_class=5))
    other = log(experiment, "2", 30.0, record=None)
    log(experiment, "2", 1.0, record=new_record(), kind="train")
    failed = log(experiment, "3", 2.0, record=new_record())
    mlflow.MlflowClient().set_terminated(failed, "FAILED")
    rows = {row.run: row for row in evaluations()}
    assert rows.keys() == {newest, preview, other}
    assert rows[newest].values == {"fid": 40.0}
    assert rows[newest].model == "fractal-digits version 1"
    assert rows[preview].protocol.samples == 50
    assert rows[other].protocol is None


def test_a_checkpoint_under_two_protocols_has_two_rows(experiment):
    first = log(experiment, "", 50.0, record=new_record(), name="evaluate-digits-abc")
    log(experiment, "", 60.0, record=new_record(), name="evaluate-digits-abd")
    other = log(experiment, "", 40.0, record=new_record(kid_subsets=9), name="evaluate-digits-abc")
    newest = log(experiment, "", 30.0, record=new_record(), name="evaluate-digits-abc")
    run_ids = {row.run for row in evaluations()}
    assert {newest, other} < run_ids and first not in run_ids and len(run_ids) == 3


def test_an_empty_store_shows_the_published_numbers_and_says_what_to_do(tmp_path):
    (tmp_path / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    words = ["results", "--params", str(tmp_path / "params.yaml")]
    shown = CliRunner().invoke(app, words, catch_exceptions=False).stdout
    assert "FractalMAR-64" in shown
    assert "no model is evaluated yet (`fractal evaluate`)" in " ".join(shown.split())
    printed = CliRunner().invoke(app, [*words, "--format", "csv"], catch_exceptions=False).stdout
    assert printed.startswith("dataset,model,published") and "is evaluated" not in printed


def test_experiments_and_runs_have_descriptions(experiment):
    text = mlflow.get_experiment(experiment).tags[NOTE_TAG]
    assert "fractal.protocol" in text
    address = f"#/experiments/{experiment}/runs?searchFilter=tags.%60fractal.kind%60"
    assert text.startswith(f"[Evaluations, the lowest FID first]({address}")
    assert "&orderByKey=metrics.%60fid%60&orderByAsc=true)" in text
    for kind in ("train", "evaluate", "import", "sweep"):
        text = describe_run(kind, "mar-l", "imagenet256")
        assert "fractal-mar-l" in text and "imagenet256" in text and "{" not in text
