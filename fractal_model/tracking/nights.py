"""What the nightly evaluation stores in MLflow: durations of evaluations, and sizes that wait.

Decided here: a size that did not fit a night's budget waits for the next night. A tag of its
registered model says so: other machines read the tag, and people see it on the model's page.
"""

import mlflow
from mlflow.entities import Run

from fractal_model.evaluation.night_budget import EarlierEvaluation
from fractal_model.tracking.registry import model_name
from fractal_model.tracking.store import find_runs, utc_now
from fractal_model.tracking.tags import KIND_TAG, PROTOCOL_TAG, SIZE_TAG, VERSION_TAG, WAITS_TAG

SAMPLES_PARAM = "evaluation.samples"
MOST_EARLIER = 5
"""Number of evaluations from which a duration is forecast. Older ones may be of other machines."""


def earlier_evaluations(experiment_id: str, size: str) -> list[EarlierEvaluation]:
    """Return the sample counts and durations of a size's last MOST_EARLIER evaluations, newest
    first. If a run stopped early, all runs of its version and protocol are left out: they may have
    reused its images, so their durations may be too short."""
    runs = find_runs([experiment_id], {KIND_TAG: "evaluate", SIZE_TAG: size})
    stopped = {_samples_key(run) for run in runs if run.info.status != "FINISHED"}
    whole = [r for r in runs if SAMPLES_PARAM in r.data.params and _samples_key(r) not in stopped]
    return [
        EarlierEvaluation(
            samples=int(run.data.params[SAMPLES_PARAM]),
            seconds=(run.info.end_time - run.info.start_time) / 1000,
        )
        for run in whole[:MOST_EARLIER]
    ]


def _samples_key(run: Run) -> tuple[str, str]:
    """Version and protocol of an evaluation, which together decide its sampled images."""
    return run.data.tags.get(VERSION_TAG, ""), run.data.tags.get(PROTOCOL_TAG, "")


def waits_since(size: str) -> str | None:
    """Time (UTC, ISO 8601) since which a size waits for a night with enough budget; None if the
    size does not wait."""
    model = mlflow.MlflowClient().get_registered_model(model_name(size))
    return model.tags.get(WAITS_TAG)


def start_waiting(size: str) -> None:
    """Record that a size waits from now on, because it did not fit the night's budget. If it waits
    already, keep the recorded time at which it began to wait."""
    if waits_since(size) is None:
        mlflow.MlflowClient().set_registered_model_tag(model_name(size), WAITS_TAG, utc_now())


def end_waiting(size: str) -> None:
    """Record that a size does not wait for a night with enough time any more."""
    if waits_since(size) is not None:
        mlflow.MlflowClient().delete_registered_model_tag(model_name(size), WAITS_TAG)
