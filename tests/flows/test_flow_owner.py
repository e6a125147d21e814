"""An owner counts as over only if its flow run or process is known to have ended."""

from __future__ import annotations

from uuid import uuid4

import pytest
from prefect import flow

from flows.flow_owner import is_over, this_owner
from fractal_model.common.locks import hold_lock
from fractal_model.training.ray_jobs.owner import Owner
from tests.support.failing_prefect import failing_prefect

pytestmark = pytest.mark.usefixtures("prefect")


@pytest.fixture(scope="module")
def ended(prefect) -> Owner:
    """The owner of an ended flow run in a process that still runs."""

    @flow
    def short() -> Owner:
        owner = this_owner()
        assert owner.flow_run
        assert not is_over(owner, None)  # The flow run is still running.
        return owner

    return short()


def test_a_flow_run_that_ended_is_over(ended, tmp_path):
    assert not ended.is_process_dead()
    assert is_over(ended, tmp_path / "lock")


def test_a_run_that_another_process_has_joined_is_not_over(ended, tmp_path):
    with hold_lock(tmp_path / "lock"):
        assert not is_over(ended, tmp_path / "lock")


def test_an_owner_is_not_over_if_the_server_does_not_answer(ended):
    with failing_prefect() as requests:
        assert not is_over(ended, None)
    assert requests


def test_an_unknown_flow_run_is_over_only_on_its_own_server(ended):
    deleted = ended.model_copy(update={"flow_run": str(uuid4())})
    assert is_over(deleted, None)
    assert not is_over(deleted.model_copy(update={"prefect": "http://another/api"}), None)


def test_a_dead_process_is_known_only_on_its_own_machine(ended):
    dead = ended.model_copy(update={"flow_run": "", "process_started": 1.0})
    assert is_over(dead, None)
    assert not is_over(dead.model_copy(update={"host": "elsewhere"}), None)
    assert not is_over(ended.model_copy(update={"flow_run": ""}), None)


def test_an_owner_is_read_back_from_a_job(ended):
    assert Owner.read(ended.model_dump_json()) == ended
    assert Owner.read("somebody") is None
