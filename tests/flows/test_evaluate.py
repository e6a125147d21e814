"""The flow with a preview, a checkpoint's folder or a version; and the record of each."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue

import mlflow
import pytest

from flows import evaluation_tasks
from flows.evaluate import evaluate_fractal, protocol_of
from fractal_model.checkpoints.checkpoint import load_checkpoint
from fractal_model.common.errors import FractalError
from fractal_model.common.locks import LockHeldError
from fractal_model.config.params import load_params
from fractal_model.evaluation import prepare_evaluation
from fractal_model.evaluation.protocol import Record
from fractal_model.model.weights import weights_checksum
from fractal_model.tracking import registry, store
from fractal_model.tracking.model_source import load_model
from tests.support.tiny_files import save_tiny


@pytest.fixture
def new_runs(project):
    """A function with the ids of a test's evaluation runs, which are deleted after the test."""
    store.connect(project.outputs)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("fractal-digits").experiment_id

    def evaluations() -> set[str]:
        runs = client.search_runs([experiment], "tags.`fractal.kind` = 'evaluate'")
        return {run.info.run_id for run in runs}

    before = evaluations()
    yield lambda: sorted(evaluations() - before)
    for run_id in evaluations() - before:
        client.delete_run(run_id)
        for name, value in registry.version_tags("digits", "1").items():
            if value == run_id:
                client.delete_model_version_tag("fractal-digits", "1", name)


def read_run_record(run_id: str) -> Record:
    return Record.model_validate(mlflow.artifacts.load_dict(f"runs:/{run_id}/protocol.json"))


def test_the_record_is_stored_beside_the_numbers(project, new_runs):
    protocol = protocol_of(load_params(project.params), "digits")
    tags = registry.version_tags("digits", "1")
    run_id = tags[f"fractal.evaluation.{protocol.fingerprint[:12]}"]
    record = read_run_record(run_id)
    assert record.protocol == protocol and record.checksum == protocol.fingerprint
    assert mlflow.get_run(run_id).data.tags["fractal.protocol"] == protocol.fingerprint
    assert record.model == "models:/fractal-digits/1" and record.version == "1"
    assert list((project.outputs / "evaluations").glob("*/")) == [], "the parts are deleted"


def test_mlflow_ranks_the_models_by_their_metrics(project, new_runs):
    """The tab "Models" of an experiment sorts by them, and so does a search."""
    experiment = mlflow.get_experiment_by_name("fractal-digits").experiment_id
    ranked = mlflow.search_logged_models(
        [experiment],
        order_by=[{"field_name": "metrics.fid", "ascending": True}],
        output_format="list",
    )
    fids = [m.value for model in ranked for m in model.metrics or () if m.key == "fid"]
    assert fids and fids == sorted(fids)
    measured = {m.model_id for model in ranked for m in model.metrics or () if m.key == "fid"}
    assert registry.logged_model_id("digits", "1") in measured


def test_a_preview_has_its_count_in_its_names_and_promotes_nothing(project, new_runs):
    before = registry.version_tags("digits", "1")
    tracked = (project.outputs / "digits/metrics.json").read_bytes()
    metrics = evaluate_fractal(preview=True, params_file=project.params)
    assert (project.outputs / "digits/metrics.json").read_bytes() == tracked, "it belongs to DVC"
    assert "fid_20" in json.loads((project.outputs / "digits/preview/metrics.json").read_text())
    assert {"fid_20", "fid_20_stderr", "precision_20", "nll_bits_per_dim"} <= set(metrics)
    assert "fid" not in metrics
    (run_id,) = new_runs()
    protocol = protocol_of(load_params(project.params), "digits", preview=True)
    assert read_run_record(run_id).protocol == protocol and protocol.is_preview
    after = registry.version_tags("digits", "1")
    assert set(after) - set(before) == {f"fractal.evaluation.{protocol.fingerprint[:12]}"}
    assert evaluate_fractal(preview=True, params_file=project.params) == metrics
    assert new_runs() == [run_id], "an evaluated version is not evaluated again"


def test_a_guide_is_in_the_protocol_by_its_content(project, new_runs):
    source = "models:/fractal-digits/1"
    changes = [f"sampling.digits.guide={source}"]
    evaluate_fractal(preview=True, params_file=project.params, set=changes)
    (run_id,) = new_runs()
    record = read_run_record(run_id)
    guide = load_model(source, project.outputs)
    assert record.protocol.images.sampling.guide == f"sha256:{weights_checksum(guide)}"
    protocol = protocol_of(load_params(project.params, changes), "digits", preview=True)
    assert protocol == record.protocol
    evaluate_fractal(preview=True, params_file=project.params, set=changes)
    assert new_runs() == [run_id], "an evaluated version is not evaluated again"


def test_a_deleted_evaluation_is_repeated_with_the_same_numbers(
    project, new_runs, monkeypatch, capsys
):
    """The numbers stay the same even if pictures and report fail."""

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    for name in ("class_overview", "draw_growth", "log_report"):
        monkeypatch.setattr(evaluation_tasks, name, fail)
    metrics = evaluate_fractal(preview=True, params_file=project.params)
    (run_id,) = new_runs()
    mlflow.delete_run(run_id)
    again = evaluate_fractal(preview=True, params_file=project.params)
    (other,) = new_runs()
    assert other != run_id and again["fid_20"] == pytest.approx(metrics["fid_20"])
    assert mlflow.get_run(other).info.status == "FINISHED"
    assert "the report is left out: [Errno 28] No space left" in capsys.readouterr().out


def test_a_checkpoint_of_another_size_is_refused_before_sampling(project, new_runs, tmp_path):
    save_tiny(tmp_path / "tiny")
    with pytest.raises(FractalError, match="size digits has image size 4, its data set"):
        evaluate_fractal(model=str(tmp_path / "tiny"), preview=True, params_file=project.params)
    assert new_runs() == []


def test_evaluating_a_checkpoint_does_not_change_the_registry(project, new_runs):
    folder = registry.resolve("digits").checkpoint
    before = registry.version_tags("digits", "1")
    metrics = evaluate_fractal(
        model=str(folder), preview=True, workers=0, params_file=project.params
    )
    assert "fid_20" in metrics and registry.version_tags("digits", "1") == before
    (run_id,) = new_runs()
    assert "fractal.model_version" not in mlflow.get_run(run_id).data.tags
    record = read_run_record(run_id)
    assert record.model == folder.name and record.version is None
    assert record.hardware.workers == 1, "0 means as many workers as there is room for"


def test_two_evaluations_of_the_same_version_share_one_result(project, new_runs, monkeypatch):
    """The second prints that it waits, and takes the numbers of the first."""
    messages: SimpleQueue[str] = SimpleQueue()
    monkeypatch.setattr(prepare_evaluation, "say", messages.put)
    params = load_params(project.params)
    version = registry.resolve("digits")
    evaluation = prepare_evaluation.prepare_evaluation(
        params,
        params.size("digits"),
        load_checkpoint(version.checkpoint).build_model(),
        name="models:/fractal-digits/1",
        version=version.version,
        preview=True,
    )
    run = partial(evaluate_fractal, preview=True, params_file=project.params)
    with ThreadPoolExecutor(1) as other:
        with evaluation.lock():
            with pytest.raises(LockHeldError, match="another process is at work here"):
                run(wait=False)
            waiting = other.submit(run)
            line = messages.get(timeout=120)
            assert line.startswith("waiting for another process that evaluates models:/fractal-di")
            run_id = evaluation_tasks.evaluate_model(evaluation)
            tag = registry.evaluation_tag(evaluation.record.checksum)
            registry.tag_version("digits", version.version, tag, run_id)
        metrics = waiting.result()
    assert new_runs() == [run_id]
    assert metrics["fid_20"] == pytest.approx(mlflow.get_run(run_id).data.metrics["fid_20"])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("models:/fractal-mar-l@candidate", "is no model of the size digits: use models:/fractal"),
        ("models:/fractal-digits", "is no model of the size digits"),
        ("models:/fractal-digits/99", "has no files for models:/fractal-digits/99"),
        ("models:/fractal-digits@nobody", "no model models:/fractal-digits@nobody is registered"),
        ("nowhere", "there is no checkpoint folder nowhere"),
    ],
)
def test_an_unknown_model_is_refused(project, new_runs, model, message):
    with pytest.raises(FractalError, match=message):
        evaluate_fractal(model=model, params_file=project.params)
    assert new_runs() == []
