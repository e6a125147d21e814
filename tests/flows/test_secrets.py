"""Prefect's pages show failures of a flow without secrets."""

from __future__ import annotations

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.states import Failed

import flows  # noqa: F401  The import removes secrets from messages.
from tests.support.outside_texts import controls

pytestmark = pytest.mark.usefixtures("prefect")


def test_the_state_and_the_log_of_a_failed_run_have_no_secrets(caplog):
    @task
    def connect() -> None:
        raise OSError("no route to \x1b[2J http://me:s3cret@host")

    @flow
    def fails() -> None:
        connect()

    state = fails(return_state=True)
    assert state.type == Failed().type
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(state.state_details.flow_run_id)
    for text in (state.message, run.state.message, caplog.text):
        assert "http://***@host" in text
        assert "s3cret" not in text and set(controls(text)) <= {"\t"}
