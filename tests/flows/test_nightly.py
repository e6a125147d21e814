"""A night on a real store: new candidates only, within the time, in spite of failures."""

from __future__ import annotations

import copy
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import mlflow
import pytest
import yaml
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client

from flows import nightly
from fractal_model.common.errors import FractalError
from fractal_model.common.locks import hold_lock
from fractal_model.tracking import nights, store
from tests.support.params import small_params
from tests.support.projects import Project, make_project

OTHER, UNPREPARED = "digits-two", "digits-three"


def _settings(**night: object) -> dict:
    """Settings with two more sizes like digits; the data set of one is not prepared."""
    content = small_params()
    for name in (OTHER, UNPREPARED):
        for section in ("models", "training", "sampling", "evaluation"):
            content[section][name] = copy.deepcopy(content[section]["digits"])
    content["training"][UNPREPARED]["dataset"] = "elsewhere"
    content["nightly"].update(night)
    return content


def _register(size: str, source: str) -> str:
    """Register a new candidate; return its version."""
    client = mlflow.MlflowClient()
    version = client.create_model_version(f"fractal-{size}", source).version
    client.set_registered_model_alias(f"fractal-{size}", "candidate", version)
    return str(version)


@pytest.fixture
def night(project: Project, tmp_path) -> Project:
    """A project where digits is evaluated, and a copy of its model under another name is not."""
    mine = make_project(tmp_path / "a night", _settings())
    (mine.folder / "data").symlink_to(project.folder / "data")
    (mine.outputs / "mlflow").mkdir(parents=True)
    for file in (project.outputs / "mlflow").glob("mlflow.db*"):
        shutil.copy(file, mine.outputs / "mlflow")
    store.connect(mine.outputs)
    client = mlflow.MlflowClient()
    client.create_registered_model(f"fractal-{OTHER}")
    _register(OTHER, _source())
    return mine


def _source() -> str:
    """Source of the model that the project has trained."""
    return mlflow.MlflowClient().get_model_version("fractal-digits", "1").source


def _evaluations() -> set[str]:
    experiment = mlflow.get_experiment_by_name("fractal-digits")
    runs = mlflow.search_runs(
        [experiment.experiment_id], "tags.`fractal.kind` = 'evaluate'", output_format="list"
    )
    return {run.info.run_name for run in runs}


def _outcomes(rows: list[dict]) -> list[tuple[str, str, str]]:
    return [(row["size"], row["evaluation"], row["outcome"]) for row in rows]


def _artifact() -> dict:
    """The table of the last night in Prefect."""
    with get_client(sync_client=True) as client:
        artifacts = client.request(
            "POST",
            "/artifacts/latest/filter",
            json={"artifacts": {"key": {"any_": ["nightly-evaluation"]}}},
        ).json()
    assert len(artifacts) == 1
    return artifacts[0]


@pytest.mark.slow
def test_a_night_evaluates_new_candidates_and_the_next_night_none(night):
    before = _evaluations()
    rows = nightly.nightly_evaluation(params_file=night.params)
    assert _outcomes(rows) == [
        (OTHER, "preview", "evaluated"),
        (OTHER, "full", "evaluated"),
        ("digits", "", "up to date"),
    ]
    after = _evaluations()
    new = {name.rpartition("-")[0] for name in after - before}  # The name without the protocol.
    assert new == {f"preview-{OTHER}-v1", f"evaluate-{OTHER}-v1"}
    assert "fid_20 " in rows[0]["detail"]
    assert "fid " in rows[1]["detail"]
    assert yaml.safe_load(_artifact()["data"]) == rows

    again = nightly.nightly_evaluation(params_file=night.params)
    assert {row["outcome"] for row in again} == {"up to date"}
    assert _evaluations() == after


def test_one_size_that_fails_does_not_stop_the_others(night, monkeypatch):
    """The failing size comes first, and gets no full evaluation after its preview."""
    new = _register("digits", _source())
    nights.start_waiting(OTHER)
    started = []

    def evaluation(
        size: str, model: str, preview: bool, wait: bool, params_file: Path, set: list[str] | None
    ) -> dict[str, float]:
        assert not wait, "the night has other work"
        started.append((model, preview))
        if size == OTHER:
            raise RuntimeError("the GPU\nis lost")
        return {"fid_20" if preview else "fid": 7.0, "nll_bits_per_dim": 3.25}

    monkeypatch.setattr(nightly, "evaluate_fractal", evaluation)
    with pytest.raises(FractalError) as raised:
        nightly.nightly_evaluation(params_file=night.params)
    assert str(raised.value) == f"nightly evaluation: {OTHER}: the GPU is lost"
    assert started == [
        (f"models:/fractal-{OTHER}/1", True),
        (f"models:/fractal-digits/{new}", True),
        (f"models:/fractal-digits/{new}", False),
    ]
    rows = yaml.safe_load(_artifact()["data"])
    assert _outcomes(rows) == [
        (OTHER, "preview", "failed"),
        ("digits", "preview", "evaluated"),
        ("digits", "full", "evaluated"),
    ]
    assert rows[2]["detail"] == "fid 7, nll_bits_per_dim 3.25"


def test_a_size_that_does_not_fit_comes_first_the_next_night(night):
    night.params.write_text(yaml.safe_dump(_settings(budget_hours=1e-5)))
    new = _register("digits", _source())
    before = _evaluations()
    nights.start_waiting(OTHER)
    rows = nightly.nightly_evaluation(params_file=night.params)
    assert _evaluations() == before
    assert {row["outcome"] for row in rows} == {"did not fit"}
    # Digits was evaluated before, so there is a forecast.
    (detail, *_) = [
        row["detail"] for row in rows if (row["size"], row["version"]) == ("digits", new)
    ]
    assert detail.startswith("about 0.0")
    assert "h left: comes first next night" in detail
    assert [row["size"] for row in rows[:2]] == [OTHER, "digits"]
    assert nights.waits_since("digits")


@pytest.fixture
def mailbox(prefect: None) -> Iterator[list[str]]:
    """Messages that a web hook receives, which is saved as a block of Prefect."""
    received: list[str] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Write nothing to the terminal."""

    server = HTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    CustomWebhookNotificationBlock(
        name="on-call",
        url=f"http://127.0.0.1:{server.server_port}",
        json_data={"title": "{{subject}}", "text": "{{body}}"},
        allow_private_urls=True,
    ).save("on-call", overwrite=True)
    yield received
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_size_without_data_is_named_and_a_message_is_sent(night, mailbox):
    client = mlflow.MlflowClient()
    client.delete_registered_model_alias(f"fractal-{OTHER}", "candidate")
    client.create_registered_model(f"fractal-{UNPREPARED}")
    _register(UNPREPARED, _source())
    settings = _settings(notification_block="custom-webhook/on-call")
    night.params.write_text(yaml.safe_dump(settings))
    rows = nightly.nightly_evaluation(params_file=night.params)
    assert _outcomes(rows) == [("digits", "", "up to date"), (UNPREPARED, "", "skipped")]
    assert "elsewhere" in rows[1]["detail"]
    (message,) = mailbox
    assert "1 up to date, 1 skipped" in message
    assert f"{UNPREPARED} 1" in message


def test_a_message_that_cannot_be_sent_fails_the_night(night):
    mlflow.MlflowClient().delete_registered_model_alias(f"fractal-{OTHER}", "candidate")
    night.params.write_text(yaml.safe_dump(_settings(notification_block="slack-webhook/nobody")))
    with pytest.raises(FractalError, match="slack-webhook/nobody sent no message"):
        nightly.nightly_evaluation(params_file=night.params)


def test_a_second_night_at_the_same_time_is_refused_on_one_line(night, capsys):
    with (
        hold_lock(night.outputs / "nightly.lock"),
        pytest.raises(SystemExit),
    ):
        night.run(nightly.main)
    line = capsys.readouterr().err
    assert line.startswith("error: another process is at work here")
    assert line.count("\n") == 1
