"""A training, its evaluations and the registered version name each other in MLflow."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from fractal_model.config.evaluation import PromotionConfig
from fractal_model.data.manifest import Manifest, read_manifest
from fractal_model.metrics.image_metrics import MetricResults
from fractal_model.tracking import champions, cross_links, registry, runs
from fractal_model.tracking.tags import NOTE_TAG, PROTOCOL_TAG, TRAINING_RUN_TAG
from tests.support.tiny_files import save_images

SIZE, NAME, PROTOCOL = "race", "fractal-race", "a1b2c3" + "0" * 58
MEASURED = {"fid": 20.0, "fid_stderr": 0.25, "nll_bits_per_dim": 0.7}


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return read_manifest(save_images(tmp_path / "flowers"))


@pytest.fixture
def version(local_store: str) -> str:
    """The only version of `fractal-race`, which a run called `train-race` has trained."""
    mlflow.MlflowClient().create_registered_model(NAME)
    return _train_version()


def _train_version() -> str:
    """Register a model without files; return the number of its version."""
    client = mlflow.MlflowClient()
    with mlflow.start_run(run_name="train-race", tags={NOTE_TAG: "A training."}) as run:
        model = mlflow.create_external_model(name="model", source_run_id=run.info.run_id)
        source = f"models:/{model.model_id}"
        number = str(client.create_model_version(NAME, source, model_id=model.model_id).version)
    registry.tag_version(SIZE, number, TRAINING_RUN_TAG, run.info.run_id)
    client.update_model_version(NAME, number, "Trained here. My own words.")
    return number


def _evaluate(version: str, manifest: Manifest, **metrics: float) -> str:
    """Make an evaluation run of a version with these metrics; return its id."""
    model_id = registry.logged_model_id(SIZE, version)
    with mlflow.start_run(
        run_name=f"evaluate-race-v{version}", tags={PROTOCOL_TAG: PROTOCOL, NOTE_TAG: "Numbers."}
    ) as run:
        runs.log_results(MetricResults(metrics, {}), manifest, model_id)
    return run.info.run_id


def _description(version: str) -> str:
    return mlflow.MlflowClient().get_model_version(NAME, version).description


def test_a_search_ordered_by_fid_returns_the_champion_first(version, manifest):
    fids = {version: 20.0, _train_version(): 9.0, _train_version(): 14.0}
    _train_version()  # Without an evaluation it comes last.
    for number, fid in fids.items():
        _evaluate(number, manifest, fid=fid)
        champions.compare_and_promote(
            SIZE,
            number,
            {"fid": fid, "nll_bits_per_dim": 0.7},
            PromotionConfig(),
            protocol=PROTOCOL,
            metrics_of=lambda v: {"fid": fids[v], "nll_bits_per_dim": 0.7},
        )
    order = [{"field_name": "metrics.fid", "ascending": True, "dataset_name": "flowers"}]
    ranked = mlflow.search_logged_models(["0"], order_by=order, output_format="list")
    champion = registry.aliased_version(SIZE, registry.CHAMPION)
    assert champion == "2"
    assert ranked[0].model_id == registry.logged_model_id(SIZE, champion)
    assert [[m.value for m in model.metrics or ()] for model in ranked] == [
        [9.0],
        [14.0],
        [20.0],
        [],
    ]


def test_the_numbers_of_a_model_name_their_data_set(version, manifest):
    run_id = _evaluate(version, manifest, **MEASURED)
    model_id = registry.logged_model_id(SIZE, version)
    (model,) = mlflow.search_logged_models(["0"], output_format="list")
    assert {m.key: m.value for m in model.metrics} == MEASURED
    data = {(m.dataset_name, m.dataset_digest, m.run_id) for m in model.metrics}
    assert data == {("flowers", manifest.checksum[:36], run_id)}
    inputs = mlflow.get_run(run_id).inputs
    assert [each.model_id for each in inputs.model_inputs] == [model_id]
    assert {each.dataset.name for each in inputs.dataset_inputs} == {"flowers"}


def test_a_training_and_its_evaluations_link_to_each_other(version, manifest):
    first, second = (_evaluate(version, manifest, **MEASURED) for _ in range(2))
    training_id = registry.training_run_id(SIZE, version)
    for run_id in (first, second):
        cross_links.link_evaluation(SIZE, version, run_id)
    training, evaluation = mlflow.get_run(training_id), mlflow.get_run(second)
    assert evaluation.data.tags[TRAINING_RUN_TAG] == training_id
    assert training.data.tags[registry.evaluation_tag(PROTOCOL)] == second
    assert evaluation.data.tags[NOTE_TAG].startswith("Numbers.\n\n")
    assert f"[train-race](#/experiments/0/runs/{training_id})" in evaluation.data.tags[NOTE_TAG]
    lines = training.data.tags[NOTE_TAG].splitlines()
    link = "- [evaluate-race-v1](#/experiments/0/runs/{}): `fid` 20, `nll_bits_per_dim` 0.7"
    assert lines[0] == "A training."
    assert lines[-2:] == [link.format(first), link.format(second)]
    assert sum("Evaluations" in line for line in lines) == 1


def test_an_evaluation_of_a_model_without_a_training_has_no_link(version, manifest):
    mlflow.delete_run(registry.training_run_id(SIZE, version))
    run_id = _evaluate(version, manifest, **MEASURED)
    cross_links.link_evaluation(SIZE, version, run_id)
    assert TRAINING_RUN_TAG not in mlflow.get_run(run_id).data.tags


def test_a_version_shows_its_newest_full_numbers_and_keeps_a_persons_words(version, manifest):
    for run_id, is_preview in (
        (_evaluate(version, manifest, fid_20=50.0), True),
        (_evaluate(version, manifest, **MEASURED), False),
        (_evaluate(version, manifest, fid_20=40.0), True),
    ):
        cross_links.show_numbers(SIZE, version, run_id, is_preview=is_preview)
    text = _description(version)
    assert text.startswith("Trained here. My own words.\n\n### Evaluation\n[evaluate-race-v1](#/")
    assert "| `fid` | 20 ± 0.25 |\n| `nll_bits_per_dim` | 0.7 |\n" in text
    assert "protocol `a1b2c3000000`" in text
    assert "fid_20" not in text and text.count("### Evaluation") == 1


def test_a_version_without_other_numbers_shows_those_of_a_preview(version, manifest):
    run_id = _evaluate(version, manifest, fid_20=50.0)
    cross_links.show_numbers(SIZE, version, run_id, is_preview=True)
    assert "| `fid_20` | 50 |" in _description(version)
