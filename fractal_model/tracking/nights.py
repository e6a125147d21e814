"""What MLflow knows that a night's plan needs: how long evaluations took, and which sizes wait.

Decided here: that a size waits is a tag of its registered model, so that another machine goes on
with it the next night, and a person sees it on the model's page.
"""

import mlflow
from mlflow.entities import Run

from fractal_model.evaluation.night_budget import EarlierEvaluation
from fractal_model.tracking.registry import model_name
from fractal_model.tracking.store import find_runs, utc_now
from fractal_model.tracking.tags import KIND_TAG, PROTOCOL_TAG, SIZE_TAG, VERSION_TAG, WAITS_TAG

SAMPLES_PARAM = "evaluation.samples"
REMEMBERED = 5
"""Earlier evaluations that a forecast looks at; older ones were of other machines perhaps."""


def earlier_evaluations(experiment_id: str, size: str) -> list[EarlierEvaluation]:
    """The last that ended well, of any version and protocol, newest first. Left out is what may
    have gone on with the images of a run that was stopped: it took the remaining time alone."""
    runs = find_runs([experiment_id], {KIND_TAG: "evaluate", SIZE_TAG: size})
    stopped = {_samples_key(run) for run in runs if run.info.status != "FINISHED"}
    whole = [r for r in runs if SAMPLES_PARAM in r.data.params and _samples_key(r) not in stopped]
    return [
        EarlierEvaluation(
            samples=int(run.data.params[SAMPLES_PARAM]),
            seconds=(run.info.end_time - run.info.start_time) / 1000,
        )
        for run in whole[:REMEMBERED]
    ]


def _samples_key(run: Run) -> tuple[str, str]:
    """Version and protocol: evaluations that share them share their images."""
    return run.data.tags.get(VERSION_TAG, ""), run.data.tags.get(PROTOCOL_TAG, "")


def waits_since(size: str) -> str | None:
    """When a size that waits began to; None for one that does not."""
    model = mlflow.MlflowClient().get_registered_model(model_name(size))
    return model.tags.get(WAITS_TAG)


def start_waiting(size: str) -> None:
    """It did not fit this night; one that waits already keeps its place."""
    if waits_since(size) is None:
        mlflow.MlflowClient().set_registered_model_tag(model_name(size), WAITS_TAG, utc_now())


def end_waiting(size: str) -> None:
    if waits_since(size) is not None:
        mlflow.MlflowClient().delete_registered_model_tag(model_name(size), WAITS_TAG)
