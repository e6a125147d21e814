"""The reason of a failed flow is the message of its run's state, on one line."""

from __future__ import annotations

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow

from flows.evaluate import evaluate_fractal
from flows.failures import report_failure
from flows.nightly import nightly_evaluation
from flows.prepare import prepare_data
from flows.sweep import sweep_guidance
from flows.train import train_fractal
from fractal_model.common.console import say
from fractal_model.common.errors import FractalError

pytestmark = pytest.mark.usefixtures("prefect")
FLOWS = (train_fractal, evaluate_fractal, sweep_guidance, prepare_data, nightly_evaluation)


@flow(name="fails")
@report_failure
def fails(kind: type[Exception], text: str) -> None:
    raise kind(text)


def _stored_message(state) -> str:
    """Message of a failed run as the server stores it."""
    with get_client(sync_client=True) as client:
        stored = client.read_flow_run(state.state_details.flow_run_id).state
    assert stored.is_failed()
    return stored.message


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (FractalError, "the disk is full:\n  free some", "the disk is full: free some"),
        (KeyError, "loss", "KeyError: 'loss'"),
        (RuntimeError, "", "RuntimeError"),
    ],
)
def test_the_message_is_the_reason(kind, text, message):
    state = fails(kind, text, return_state=True)
    assert _stored_message(state) == message


def test_the_caller_of_a_flow_gets_the_exception():
    with pytest.raises(FractalError, match=r"^no room$"):
        fails(FractalError, "no room")


def test_only_a_bug_has_a_traceback_in_the_log(caplog):
    fails(FractalError, "no room", return_state=True)
    assert not [record for record in caplog.records if record.exc_info]
    fails(KeyError, "loss", return_state=True)
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.exc_info[0] is KeyError


@pytest.mark.parametrize("failing_flow", FLOWS, ids=lambda failing_flow: failing_flow.name)
def test_every_flow_reports_its_reason(failing_flow, tmp_path):
    state = failing_flow(params_file=tmp_path / "none.yaml", return_state=True)
    message = _stored_message(state)
    assert message.startswith(f"{tmp_path / 'none.yaml'} is missing in ")
    assert "\n" not in message


@flow(name="says")
@report_failure
def says() -> None:
    say("a line for people")


def test_messages_of_a_deployments_run_are_in_prefects_log(caplog, capsys):
    caplog.set_level("INFO")
    says()
    assert "a line for people" in capsys.readouterr().out
    assert "a line for people" not in caplog.messages
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(says), name="any")
        run = client.create_flow_run_from_deployment(deployment)
    run_flow(says, flow_run=run)
    assert "a line for people" in caplog.messages
    assert "a line for people" not in capsys.readouterr().out
