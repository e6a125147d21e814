"""Prefect's automations: evaluate a version after its training, and end runs that went silent.

Decided here: a training announces the version that it registers with an event of its own. Prefect's
event of a completed run would not do, because a training that reuses a version completes, too. The
automations concern only runs of deployments with the tag `fractal`, which ours have:
`python -m flows.train` starts no evaluation, and other flows of a shared server keep their states.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from prefect import tags
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events import DeploymentEventTrigger, emit_event
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.runtime import deployment, flow_run
from prefect.settings import get_current_settings

RUN_TAG = "fractal"
"""Tag of all our deployments, which their runs inherit."""
REGISTERED = "fractal.version.registered"
"""Name of the event by which a training of a deployment announces the version that it registers."""
WATCHES = ("Fractal: crash runs without a heartbeat", "Fractal: end cancelled runs")
"""Names of the automations that end silent runs."""
MISSED_HEARTBEATS = 3
"""Number of heartbeats in a row that a run may miss. One may be late on a busy machine."""
_SIZE = "fractal.size."
_PAYLOAD_SET = {
    "__prefect_kind": "json",
    "value": {"__prefect_kind": "jinja", "template": "{{ event.payload.set | tojson }}"},
}
"""Parameter `set` of a triggered evaluation: a list, which Prefect passes on as JSON."""
_HEARTBEAT = "prefect.flow-run.heartbeat"


def announce_version(size: str, model: str) -> None:
    """Tell Prefect that the current flow run has registered a version of a size, if a deployment
    started the run. `model`: the version's address, as `models:/fractal-digits/3`. The evaluation
    gets the parameter `set` of the training, too. If Prefect does not answer, nothing happens."""
    if deployment.id is not None:
        resource = {"prefect.resource.id": f"{_SIZE}{size}", "prefect.resource.name": size}
        payload = {"model": model, "set": flow_run.parameters.get("set")}
        emit_event(REGISTERED, resource, payload=payload)


def evaluation_trigger(size: str) -> DeploymentEventTrigger:
    """The trigger that runs the evaluation of a size for each version that a training announces."""
    return DeploymentEventTrigger(
        name=f"Fractal: evaluate {size} after training",
        description=f"Runs evaluate-fractal/{size} for each new version that a run of "
        f"train-fractal/{size} registers. To switch it off for good, set services."
        "evaluate_after_training to false in params.yaml and run `make up` again.",
        expect={REGISTERED},
        match={"prefect.resource.id": f"{_SIZE}{size}"},
        parameters={"model": "{{ event.payload.model }}", "set": _PAYLOAD_SET},
    )


def watch_runs(client: SyncPrefectClient) -> None:
    """Make or change the automations that end silent runs. They stay paused if a person has paused
    them. Without heartbeats (PREFECT_FLOWS_HEARTBEAT_FREQUENCY) there are none."""
    seconds = get_current_settings().flows.heartbeat_frequency
    watches = [] if seconds is None else _watches(timedelta(seconds=MISSED_HEARTBEATS * seconds))
    existing = {name: client.read_automations_by_name(name) for name in WATCHES}
    for watch in watches:
        if found := existing.pop(watch.name):
            watch = watch.model_copy(update={"enabled": found[0].enabled})
            client.update_automation(found[0].id, watch)
        else:
            client.create_automation(watch)
    for unwanted in itertools.chain.from_iterable(existing.values()):
        client.delete_automation(unwanted.id)


def _watches(silence: timedelta) -> list[AutomationCore]:
    """The automations for runs from which nothing is heard for `silence`."""
    seconds = f"{silence.total_seconds():.0f} s"
    final = {f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Cancelled", "Crashed")}
    crash, cancel = WATCHES
    return [
        _watch(
            crash,
            silence,
            after=_HEARTBEAT,
            expect={_HEARTBEAT, *final},
            state=StateType.CRASHED,
            message=f"No heartbeat came for {seconds}: its process has ended, the machine slept, "
            "or Prefect's server was away. End the process if it still works, then run the "
            "deployment again: it continues where this run stopped.",
        ),
        # Prefect does not let a run crash that is being cancelled.
        _watch(
            cancel,
            silence,
            after="prefect.flow-run.Cancelling",
            expect=final,
            state=StateType.CANCELLED,
            message=f"It did not end for {seconds} after it was cancelled.",
        ),
    ]


def _watch(
    name: str,
    silence: timedelta,
    *,
    after: str,
    expect: set[str],
    state: StateType,
    message: str,
) -> AutomationCore:
    """The automation that sets a run to `state` if none of the events `expect` comes for `silence`
    after the event `after`."""
    return AutomationCore(
        name=name,
        description=f"{message} The run's slot is free then, and the next run starts.",
        trigger=EventTrigger(
            after={after},
            expect=expect,
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={
                "prefect.resource.id": f"prefect.tag.{RUN_TAG}",
                "prefect.resource.role": "tag",
            },
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=silence,
        ),
        actions=[ChangeFlowRunState(state=state, name=state.value.capitalize(), message=message)],
    )


@contextmanager
def with_tags_of_parent() -> Iterator[None]:
    """Give child runs in the `with` block the current run's tags, so that they are watched, too."""
    with tags(*(flow_run.tags or ())):
        yield
