"""Prefect's automations that the deployments bring along, on a real server."""

from __future__ import annotations

import copy
from datetime import timedelta
from uuid import uuid4

import pytest
import yaml
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.schemas.automations import Automation, Posture
from prefect.flow_engine import run_flow
from prefect.runtime import flow_run
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.utilities.schema_tools.hydration import HydrationContext, hydrate

from flows import automations, deployments
from flows.automations import REGISTERED, RUN_TAG, WATCHES
from tests.support.params import small_params
from tests.support.projects import Project, make_project

SIZES = ("digits", "own")


@pytest.fixture
def client(prefect: None):
    """A client of a server without automations."""
    with get_client(sync_client=True) as client:
        for automation in client.read_automations():
            client.delete_automation(automation.id)
        yield client


@pytest.fixture
def project(tmp_path, monkeypatch) -> Project:
    content = small_params()
    for section in ("models", "training", "sampling", "evaluation"):
        digits = content[section]["digits"]
        content[section] = {size: copy.deepcopy(digits) for size in SIZES}
    content["sweep"] = {}
    project = make_project(tmp_path / "a project", content)
    monkeypatch.chdir(project.folder)
    return project


def _triggers(client: SyncPrefectClient) -> dict[str, Automation]:
    """The automations that run a deployment, by the deployment's name."""
    return {
        client.read_deployment(action.deployment_id).name: automation
        for automation in client.read_automations()
        for action in automation.actions
        if action.type == "run-deployment"
    }


def test_each_size_is_evaluated_once_after_its_training(project, client):
    for _ in range(2):  # `make up` makes them again, not twice
        deployments.deploy(project.params)
    triggers = _triggers(client)
    assert triggers.keys() == set(SIZES)
    assert len(client.read_automations()) == len(SIZES) + len(WATCHES)
    own = triggers["own"]
    assert own.enabled and own.trigger.expect == {REGISTERED}
    assert own.trigger.match.model_dump() == {"prefect.resource.id": "fractal.size.own"}
    (action,) = own.actions
    deployed = client.read_deployment_by_name("evaluate-fractal/own")
    assert action.deployment_id == deployed.id
    assert action.parameters["model"] == "{{ event.payload.model }}"
    for overrides in (["models.own.widths=[8, 8]"], None):
        context = HydrationContext(
            render_jinja=True, jinja_context={"event": {"payload": {"set": overrides}}}
        )
        assert hydrate({"set": action.parameters["set"]}, context) == {"set": overrides}


def test_the_evaluation_after_training_can_be_switched_off(project, client):
    deployments.deploy(project.params)
    content = yaml.safe_load(project.params.read_text())
    content["services"]["evaluate_after_training"] = False
    project.params.write_text(yaml.safe_dump(content))
    deployments.deploy(project.params)
    assert {automation.name for automation in client.read_automations()} == set(WATCHES)


def test_silent_runs_end_after_three_heartbeats_and_a_persons_pause_stays(client):
    automations.watch_runs(client)
    (watch,) = client.read_automations_by_name(WATCHES[0])
    client.pause_automation(watch.id)
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 40}):
        automations.watch_runs(client)
    by_name = {automation.name: automation for automation in client.read_automations()}
    crash, cancel = (by_name.pop(name) for name in WATCHES)
    assert (crash.enabled, cancel.enabled, by_name) == (False, True, {})
    states = [watch.actions[0].state.value for watch in (crash, cancel)]
    assert states == ["CRASHED", "CANCELLED"]
    assert "prefect.flow-run.heartbeat" in crash.trigger.after & crash.trigger.expect
    for watch in (crash, cancel):
        assert watch.trigger.posture == Posture.Proactive
        assert watch.trigger.within == timedelta(seconds=120)
        assert watch.trigger.match_related["prefect.resource.id"] == [f"prefect.tag.{RUN_TAG}"]
        assert "prefect.flow-run.Completed" in watch.trigger.expect
        assert not watch.actions[0].force, "an event that is lost must not change an ended run"


def test_without_heartbeats_no_run_is_ended_for_want_of_them(client):
    automations.watch_runs(client)
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        automations.watch_runs(client)
    assert client.read_automations() == []


@pytest.mark.parametrize("is_deployed", [True, False])
def test_only_a_training_of_a_deployment_announces_its_version(monkeypatch, is_deployed):
    sent = []
    monkeypatch.setattr(automations, "emit_event", lambda *a, **options: sent.append((a, options)))
    if is_deployed:
        monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", str(uuid4()))
    automations.announce_version("own", "models:/fractal-own/3")
    resource = {"prefect.resource.id": "fractal.size.own", "prefect.resource.name": "own"}
    payload = {"model": "models:/fractal-own/3", "set": None}
    expected = ((REGISTERED, resource), {"payload": payload})
    assert sent == ([expected] if is_deployed else [])


@pytest.mark.parametrize("own_tags", [[RUN_TAG], []])
def test_a_child_run_has_the_tags_of_its_parent(client, own_tags):
    @flow
    def child() -> list[str]:
        return flow_run.tags

    @flow
    def parent() -> list[str]:
        with automations.with_tags_of_parent():
            return child()

    run = client.create_flow_run(parent, tags=own_tags)
    assert run_flow(parent, flow_run=run) == own_tags
