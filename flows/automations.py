"""Prefect's automations: evaluate a version after its training, and crash runs that went silent.

Decided here: a training announces the version that it registers with an event of its own. Prefect's
event of a completed run would not do, because a training that reuses a version completes, too. Both
automations concern only runs of our deployments: `python -m flows.train` starts no evaluation, and
other flows of a shared server keep their states.
"""

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
WATCH = "Fractal: crash runs without a heartbeat"
MISSED_HEARTBEATS = 3
"""Number of heartbeats in a row that a run may miss. One may be late on a busy machine."""
_SIZE = "fractal.size."
_HEARTBEAT = "prefect.flow-run.heartbeat"
_FINAL = ("Completed", "Failed", "Cancelled", "Crashed")


def announce_version(size: str, model: str) -> None:
    """Tell Prefect that the current flow run has registered a version of a size, if a deployment
    started the run. `model`: the version's address, as `models:/fractal-digits/3`. If Prefect does
    not answer, nothing happens."""
    if deployment.id is not None:
        resource = {"prefect.resource.id": f"{_SIZE}{size}", "prefect.resource.name": size}
        emit_event(REGISTERED, resource, payload={"model": model})


def evaluation_trigger(size: str) -> DeploymentEventTrigger:
    """The trigger that runs the evaluation of a size for each version that a training announces."""
    return DeploymentEventTrigger(
        name=f"Fractal: evaluate {size} after training",
        description=f"Runs evaluate-fractal/{size} for each new version that a run of "
        f"train-fractal/{size} registers. To switch it off for good, set services."
        "evaluate_after_training to false in params.yaml and run `make up` again.",
        expect={REGISTERED},
        match={"prefect.resource.id": f"{_SIZE}{size}"},
        parameters={"model": "{{ event.payload.model }}"},
    )


def watch_heartbeats(client: SyncPrefectClient) -> None:
    """Make or change the automation that crashes silent runs. It stays paused if a person has
    paused it. Without heartbeats (PREFECT_FLOWS_HEARTBEAT_FREQUENCY) there is none."""
    seconds = get_current_settings().flows.heartbeat_frequency
    existing = client.read_automations_by_name(WATCH)
    if seconds is None:
        for automation in existing:
            client.delete_automation(automation.id)
    elif existing:
        watch = _heartbeat_watch(seconds, enabled=existing[0].enabled)
        client.update_automation(existing[0].id, watch)
    else:
        client.create_automation(_heartbeat_watch(seconds))


def _heartbeat_watch(seconds: int, *, enabled: bool = True) -> AutomationCore:
    """The automation for runs that send a heartbeat every `seconds`."""
    silence = timedelta(seconds=MISSED_HEARTBEATS * seconds)
    return AutomationCore(
        name=WATCH,
        description=f"Sets a run to Crashed that has not ended and has sent no heartbeat for "
        f"{silence.total_seconds():.0f} s: its process or its machine is gone. Its slot is free "
        "then, and the next run of its deployment starts.",
        enabled=enabled,
        trigger=EventTrigger(
            after={_HEARTBEAT},
            expect={_HEARTBEAT, *(f"prefect.flow-run.{name}" for name in _FINAL)},
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
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                message="It has sent no heartbeat for "
                f"{silence.total_seconds():.0f} s, so its process is gone: run the deployment "
                "again, it continues where this run stopped.",
                # Without force Prefect refuses to change the state of a run that is Cancelling.
                force=True,
            )
        ],
    )


@contextmanager
def with_tags_of_parent() -> Iterator[None]:
    """Give child runs in the `with` block the current run's tags, so that they are watched, too."""
    with tags(*(flow_run.tags or ())):
        yield
