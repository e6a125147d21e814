"""The plan of a night, on a store of invented evaluations: nothing is sampled here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import yaml

from flows import nightly
from fractal_model.common.locks import LockHeldError
from fractal_model.config.params import Params, load_params
from fractal_model.evaluation.protocol import Protocol
from fractal_model.tracking import champions, nights, registry, store
from fractal_model.tracking.tags import DECIDED_TAG, KIND_TAG, PROTOCOL_TAG, SIZE_TAG
from tests.support.evaluated_rows import protocol
from tests.support.params import small_params

OTHER = "digits-two"
FULL, PREVIEW = protocol(), protocol(samples_per_class=5)
SECONDS = 1000


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Settings with digits and a similar size, both registered. Version 1 of digits is evaluated,
    compared and the champion."""
    content = small_params()
    for section in ("models", "training", "sampling", "evaluation"):
        content[section][OTHER] = content[section]["digits"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    params = load_params(tmp_path / "params.yaml")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store.connect(params.paths.outputs)
    for size in ("digits", OTHER):
        mlflow.MlflowClient().create_registered_model(registry.model_name(size))
        new_candidate(size)
    log_evaluation(params, "digits", "1", FULL)
    registry.set_alias("digits", registry.CHAMPION, "1")
    registry.tag_version("digits", "1", DECIDED_TAG, FULL.fingerprint)
    monkeypatch.setattr(nightly, "read_manifest", lambda folder: None)
    monkeypatch.setattr(
        nightly, "protocol_of", lambda params, size, preview: PREVIEW if preview else FULL
    )
    monkeypatch.setattr(nightly, "get_run_logger", lambda: logging.getLogger("night"))
    return params


def new_candidate(size: str) -> str:
    name = registry.model_name(size)
    version = str(mlflow.MlflowClient().create_model_version(name, "test://none/none").version)
    registry.set_alias(size, registry.CANDIDATE, version)
    return version


def log_evaluation(params: Params, size: str, version: str, by: Protocol) -> None:
    """Log an evaluation of a version that took `SECONDS`."""
    experiment = store.get_or_create_experiment("digits", params.paths.outputs)
    tags = {KIND_TAG: "evaluate", SIZE_TAG: size, PROTOCOL_TAG: by.fingerprint}
    client = mlflow.MlflowClient()
    run_id = client.create_run(experiment, start_time=1000, tags=tags).info.run_id
    client.log_param(run_id, nights.SAMPLES_PARAM, by.samples)
    client.set_terminated(run_id, end_time=1000 * (1 + SECONDS))
    registry.tag_version(size, version, registry.evaluation_tag(by.fingerprint), run_id)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Evaluations that the night starts: size, and True for a preview."""
    calls: list[tuple[str, bool]] = []

    def evaluation(
        size: str, model: str, preview: bool, wait: bool, params_file: Path, set: list[str] | None
    ) -> dict[str, float]:
        assert not wait, "the night has other work"
        calls.append((size, preview))
        return {}

    monkeypatch.setattr(nightly, "evaluate_fractal", evaluation)
    return calls


def night(params: Params) -> nightly.Night:
    return nightly.Night(params, Path("params.yaml"), None)


def outcomes(params: Params) -> list[tuple[str, str, str]]:
    return [(row.size, row.evaluation, row.outcome) for row in night(params).run()]


def test_only_a_new_candidate_is_evaluated(params, started):
    assert outcomes(params) == [
        (OTHER, "preview", "evaluated"),
        (OTHER, "full", "evaluated"),
        ("digits", "", "up to date"),
    ]


@pytest.mark.parametrize("decided", [None, PREVIEW.fingerprint])
def test_an_evaluated_version_without_a_comparison_is_taken_up(params, started, decided):
    """The process died before the comparison, a sweep evaluated the version, or it was compared
    under another protocol only."""
    new = new_candidate("digits")
    log_evaluation(params, "digits", new, FULL)
    if decided:
        registry.tag_version("digits", new, DECIDED_TAG, decided)
    assert ("digits", "full", "evaluated") in outcomes(params)
    assert ("digits", False) in started and ("digits", True) not in started
    registry.tag_version("digits", new, DECIDED_TAG, FULL.fingerprint)
    assert ("digits", "", "up to date") in outcomes(params)


def _fail(*arguments: str) -> None:
    raise mlflow.MlflowException("the registry\nis away")


BREAKS: tuple[Callable[[pytest.MonkeyPatch], None], ...] = (
    lambda patch: patch.setattr(champions, "is_decided", _fail),
    lambda patch: patch.setattr(nightly, "forecast_seconds", _fail),
    lambda patch: patch.setattr(nights, "end_waiting", _fail),
)


@pytest.mark.parametrize("breaks", BREAKS)
def test_every_failure_becomes_a_row(params, started, breaks, monkeypatch):
    breaks(monkeypatch)
    rows = night(params).run()
    failed = [row for row in rows if row.outcome == "failed"]
    assert failed and {row.detail for row in failed} == {"the registry is away"}
    assert {row.size for row in rows} == {"digits", OTHER}


def test_a_size_in_work_elsewhere_and_one_without_settings_are_skipped(params, monkeypatch):
    def at_work(**options: object) -> None:
        raise LockHeldError("another process is at work here")

    monkeypatch.setattr(nightly, "evaluate_fractal", at_work)
    mlflow.MlflowClient().create_registered_model("fractal-digits-of-old")
    new_candidate("digits-of-old")
    rows = outcomes(params)
    assert [row for row in rows if row[0] == OTHER] == [
        (OTHER, "preview", "skipped"),
        (OTHER, "full", "skipped"),
    ]
    assert ("digits-of-old", "", "skipped") in rows


def test_the_forecast_includes_a_champion_without_an_evaluation(params):
    new = new_candidate("digits")
    other = protocol(kid_subsets=4)

    def forecast(version: str, full: Protocol, asked: Protocol) -> float | None:
        return night(params)._forecast(nightly.Due("digits", version, full, None, None), asked)

    assert forecast(new, FULL, FULL) == SECONDS
    assert forecast(new, other, other) == 2 * SECONDS
    assert forecast(new, other, PREVIEW) == SECONDS
    assert forecast("1", FULL, FULL) == 0


def test_a_size_without_a_forecast_waits_in_the_second_half_of_the_night(params, started):
    half_gone = night(params)
    half_gone._deadline -= 0.6 * params.nightly.budget_seconds
    outcome_of = {(row.size, row.evaluation): row.outcome for row in half_gone.run()}
    assert outcome_of[OTHER, "full"] == outcome_of[OTHER, "preview"] == "did not fit"
    assert nights.waits_since(OTHER) and not started


def test_a_failed_night_has_its_table(params, started, monkeypatch):
    """The table and the message are written before the error."""
    written: list[object] = []
    monkeypatch.setattr(champions, "is_decided", _fail)
    monkeypatch.setattr(nightly, "create_table_artifact", lambda **table: written.append(table))
    file = params.paths.outputs.parent / "params.yaml"
    state = nightly.nightly_evaluation.fn(params_file=file)
    assert state.is_failed() and "digits: the registry is away" in state.message
    assert len(written) == 1
