"""Promotion by the flow: its tags and artifact, and settings that changed since registration."""

from __future__ import annotations

from collections.abc import Iterator

import mlflow
import pytest
import yaml
from prefect.artifacts import Artifact

from flows import evaluate, train
from fractal_model.tracking import champions, registration, registry, store
from tests.support.params import small_params
from tests.support.projects import Project

NAME = "fractal-digits"


@pytest.fixture
def client(project: Project) -> mlflow.MlflowClient:
    store.connect(project.outputs)
    return mlflow.MlflowClient()


@pytest.fixture
def without_champion(client: mlflow.MlflowClient) -> Iterator[None]:
    """A registry without a champion; after the test it is restored."""
    experiment = client.get_experiment_by_name(NAME).experiment_id
    earlier = {run.info.run_id for run in client.search_runs([experiment])}
    tags = registry.version_tags("digits", "1")
    client.delete_registered_model_alias(NAME, "champion")
    yield
    for key in set(registry.version_tags("digits", "1")) - set(tags):
        client.delete_model_version_tag(NAME, "1", key)
    for key, value in tags.items():
        registry.tag_version("digits", "1", key, value)
    for version in registry.versions("digits"):
        if str(version.version) != "1":
            client.delete_model_version(NAME, version.version)
    for run in client.search_runs([experiment]):
        if run.info.run_id not in earlier:
            client.delete_run(run.info.run_id)
    for alias in ("candidate", "champion"):
        client.set_registered_model_alias(NAME, alias, "1")


def test_the_decision_and_its_numbers_are_in_tags_and_history(project, client):
    tags = client.get_model_version(NAME, "1").tags
    evaluations = [run for key, run in tags.items() if key.startswith("fractal.evaluation.")]
    fids = [mlflow.get_run(run).data.metrics["fid"] for run in evaluations]
    assert tags["fractal.decision"] == "there is no champion yet"
    assert tags["fractal.decision.promoted"] == "true"
    assert tags["fractal.decision.champion"] == "none"
    assert any(float(tags["fractal.decision.fid"]) == pytest.approx(f, rel=1e-5) for f in fids)
    first = champions.history("digits")[0]
    assert (first.version, first.how) == ("1", "evaluation")


@pytest.mark.slow
def test_a_version_that_serves_with_other_settings_than_evaluated_is_not_promoted(
    project, client, without_champion
):
    content = small_params()
    content["sampling"]["digits"]["guidance"] = 3.0
    content["evaluation"]["digits"].update(samples_per_class=2)
    file = project.folder / "stronger.yaml"
    file.write_text(yaml.safe_dump(content))

    evaluate.evaluate_fractal(size="digits", params_file=file)
    reason = client.get_model_version(NAME, "1").tags["fractal.decision"]
    assert "version 1 serves with guidance 2.0 instead of 3.0" in reason
    assert registry.aliased_version("digits", "champion") is None
    assert reason in Artifact.get("promotion-digits").data

    again = train.train_fractal(size="digits", params_file=file)
    assert again != "1"
    assert registry.aliased_version("digits", "candidate") == again
    evaluate.evaluate_fractal(size="digits", params_file=file)
    assert registry.aliased_version("digits", "champion") == again
    assert registration.read_serving("digits", again).sampling.guidance == 3.0
    text = Artifact.get("promotion-digits").data
    assert f"version {again}: promoted to champion" in text and "| fid |" in text
