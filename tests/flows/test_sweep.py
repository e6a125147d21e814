"""A sweep on a real store: its settings, its rungs, its results, and how it continues."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import yaml

from flows import sweep
from fractal_model.checkpoints.checkpoint import load_checkpoint
from fractal_model.common.errors import FractalError
from fractal_model.config.params import load_params
from fractal_model.config.serving import ServingConfig
from fractal_model.evaluation.sweep_previews import Previews
from fractal_model.model.weights import weights_checksum
from fractal_model.reporting.sweep import CURVES, HEAT_MAP
from fractal_model.tracking import registry, store
from tests.support.params import small_params
from tests.support.projects import Project, make_project


def _settings(**changes: object) -> dict:
    """Settings of a sweep: 4 settings with 1 image per class, 2 of them with 2, 60 images."""
    content = copy.deepcopy(small_params())
    content["sweep"] = {
        "digits": {"guidance": [1.0, 3.0], "logit_scale": [1.0, 1.5], "samples": 60, "keep": 2}
    }
    content["sweep"]["digits"].update(changes)
    return content


@pytest.fixture
def swept(project: Project, tmp_path) -> Iterator[Project]:
    """A project with these settings and the shared project's store, which is restored later."""
    mine = make_project(tmp_path / "a sweep", _settings())
    (mine.folder / "outputs").symlink_to(project.outputs)
    (mine.folder / "data").symlink_to(project.folder / "data")
    store.connect(project.outputs)
    before = {run.info.run_id for run in _runs()}
    tags = mlflow.MlflowClient().get_model_version("fractal-digits", "1").tags
    yield mine
    client = mlflow.MlflowClient()
    for run in _runs():
        if run.info.run_id not in before:
            client.delete_run(run.info.run_id)
    for tag in set(client.get_model_version("fractal-digits", "1").tags) - set(tags):
        client.delete_model_version_tag("fractal-digits", "1", tag)


def _runs(kind: str | None = None) -> list:
    experiment = mlflow.get_experiment_by_name("fractal-digits")
    query = f"tags.`fractal.kind` = '{kind}'" if kind else ""
    return mlflow.search_runs([experiment.experiment_id], query, output_format="list")


def test_a_killed_sweep_continues_and_ends_with_the_full_protocol(swept, monkeypatch):
    sampled: list[tuple[float, float, int]] = []
    measure = Previews.measure

    def count_and_measure(self: Previews, setting: ServingConfig, counts, progress):
        if len(sampled) == 5:
            sampled.append((0, 0, 0))
            raise KeyboardInterrupt
        sampled.append((setting.sampling.guidance, setting.sampling.logit_scale, counts[-1]))
        return measure(self, setting, counts, progress)

    monkeypatch.setattr(Previews, "measure", count_and_measure)
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep_guidance(params_file=swept.params)
    result = sweep.sweep_guidance(params_file=swept.params)

    # Nothing was measured twice; the second rung has half of the settings, with twice the images.
    rungs = [(guidance, scale, count) for guidance, scale, count in sampled if count]
    assert len(set(rungs)) == len(rungs) == 6
    assert [count for *_, count in rungs] == [1, 1, 1, 1, 2, 2]

    runs = _runs("sweep")
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {
        (run.data.params["sampling.guidance"], run.data.params["sampling.logit_scale"]): run
        for run in runs
        if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    }
    assert len(children) == len(runs) - 1 == 4
    first = {key: run.data.metrics["fid_10"] for key, run in children.items()}
    second = {
        k: r.data.metrics["fid_20"] for k, r in children.items() if "fid_20" in r.data.metrics
    }
    assert set(second) == set(sorted(first, key=first.__getitem__)[:2])
    best = min(second, key=second.__getitem__)
    assert (str(result["guidance"]), str(result["logit_scale"])) == best

    (full,) = [
        r
        for r in _runs("evaluate")
        if r.data.params["sampling.guidance"] == best[0]
        and r.data.params["sampling.logit_scale"] == best[1]
    ]
    assert result["fid"] == full.data.metrics["fid"] == parent.data.metrics["fid"]
    assert parent.data.tags["fractal.evaluation_run"] == full.info.run_id
    assert parent.info.status == "FINISHED"
    artifacts = {file.path for file in mlflow.MlflowClient().list_artifacts(parent.info.run_id)}
    assert {"settings.json", HEAT_MAP, CURVES} <= artifacts
    table = mlflow.artifacts.load_dict(f"runs:/{parent.info.run_id}/settings.json")
    assert len(table["data"]) == 6
    assert not list((swept.outputs / "sweeps").glob("*/"))

    # A finished sweep is not repeated.
    assert sweep.sweep_guidance(params_file=swept.params) == result
    assert len(sampled) == 7
    assert len(_runs()) == len(runs) + len(_runs("evaluate")) + len(_runs("train"))


def test_weights_are_an_axis_of_a_sweep(swept, monkeypatch):
    weights = ["model", "ema-0.5", "ema-0.9"]
    settings = _settings(weights=weights, guidance=[1.0], logit_scale=[1.0])
    swept.params.write_text(yaml.safe_dump(settings))
    used: dict[str, set[str]] = {}
    measure = Previews.measure

    def note_model_and_measure(self: Previews, setting: ServingConfig, counts, progress):
        model = self.models(setting.weights)
        used.setdefault(setting.weights, set()).add(weights_checksum(model))
        return measure(self, setting, counts, progress)

    monkeypatch.setattr(Previews, "measure", note_model_and_measure)
    result = sweep.sweep_guidance(params_file=swept.params)

    stored = load_checkpoint(registry.resolve("digits").checkpoint)
    assert used == {name: {weights_checksum(stored.build_model(name))} for name in weights}
    assert len(set.union(*used.values())) == 3
    runs = _runs("sweep")
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.data.params["weights"]: run for run in runs if run is not parent}
    assert set(children) == set(weights)
    best = parent.data.params["best.weights"]
    full = mlflow.get_run(parent.data.tags["fractal.evaluation_run"])
    assert full.data.params["evaluation.weights"] == best
    assert result["fid"] == full.data.metrics["fid"]
    table = mlflow.artifacts.load_dict(f"runs:/{parent.info.run_id}/settings.json")
    assert [row[table["columns"].index("weights")] for row in table["data"][:3]] == weights


def test_a_budget_that_is_too_small_is_refused_before_sampling(swept, capsys):
    swept.params.write_text(yaml.safe_dump(_settings(samples=59)))
    with pytest.raises(SystemExit):
        swept.run(sweep.main)
    line = capsys.readouterr().err
    assert line.startswith("error: a budget of 59 images is too small for 4 settings")
    assert "60 or more" in line
    assert line.count("\n") == 1
    with pytest.raises(FractalError, match="budget of 30 images"):
        sweep.sweep_guidance(samples=30, params_file=swept.params)


def test_a_sweep_does_not_continue_with_numbers_of_other_libraries(swept, monkeypatch):
    params = load_params(swept.params)
    version = registry.resolve("digits")

    def folder() -> Path:
        settings = params.sweep["digits"]
        return sweep._Sweep(params, params.size("digits"), version, settings)._previews.folder

    before = folder()
    assert folder() == before
    monkeypatch.setattr(
        "fractal_model.evaluation.inputs.library_versions", lambda: {"torch": "0.1"}
    )
    assert folder() != before
