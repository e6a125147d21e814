"""What MLflow knows that a night's plan needs: how long evaluations took, and which sizes wait.

Decided here: that a size waits is a tag of its registered model, so that another machine goes on
with it the next night, and a person sees it on the model's page.
"""

from __future__ import annotations

from datetime import UTC, datetime

import mlflow
from mlflow.entities import Run, RunStatus

from fractal_model.evaluation.night_budget import Measured
from fractal_model.evaluation.protocol import PROTOCOL_TAG
from fractal_model.tracking import registry, runs

WAITS_TAG = "fractal.nightly_waits_since"
"""Of a registered model: when an evaluation of it first did not fit a night's budget (UTC)."""
SAMPLES_PARAM = "evaluation.samples"
REMEMBERED = 5
"""Earlier evaluations that a forecast looks at; older ones were of other machines perhaps."""
_MILLISECONDS = 1000


def earlier_evaluations(experiment_id: str, size: str) -> list[Measured]:
    """The last that ended well, of any version and protocol, newest first. Left out is what may
    have gone on with the images of a run that was stopped: it took the remaining time alone."""
    found = mlflow.search_runs(
        [experiment_id],
        f"tags.`{runs.KIND_TAG}` = 'evaluate' and tags.`{runs.SIZE_TAG}` = '{size}'",
        order_by=["attributes.start_time DESC"],
        output_format="list",
    )
    finished = RunStatus.to_string(RunStatus.FINISHED)
    stopped = {_of(run) for run in found if run.info.status != finished}
    whole = [
        run
        for run in found
        if run.info.status == finished
        and SAMPLES_PARAM in run.data.params
        and _of(run) not in stopped
    ]
    return [
        Measured(
            samples=int(run.data.params[SAMPLES_PARAM]),
            seconds=(run.info.end_time - run.info.start_time) / _MILLISECONDS,
        )
        for run in whole[:REMEMBERED]
    ]


def _of(run: Run) -> tuple[str, str]:
    """Version and protocol: evaluations that share them share their images."""
    return run.data.tags.get(runs.VERSION_TAG, ""), run.data.tags.get(PROTOCOL_TAG, "")


def waits_since(size: str) -> str | None:
    """When a size that waits began to; None for one that does not."""
    model = mlflow.MlflowClient().get_registered_model(registry.model_name(size))
    return model.tags.get(WAITS_TAG)


def let_wait(size: str) -> None:
    """It did not fit this night; one that waits already keeps its place."""
    if waits_since(size) is None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        mlflow.MlflowClient().set_registered_model_tag(registry.model_name(size), WAITS_TAG, now)


def end_waiting(size: str) -> None:
    if waits_since(size) is not None:
        mlflow.MlflowClient().delete_registered_model_tag(registry.model_name(size), WAITS_TAG)
