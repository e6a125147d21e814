"""Links a training, the evaluations of its model and the registered version on MLflow's pages.

Decided here: tags hold the ids for programs, descriptions hold the links for people. What a person
wrote into a description stays: a training's description is only appended to, and a version's one is
replaced only from the heading "Evaluation" on. A full evaluation replaces the numbers of a preview,
and never the other way round.
"""

import mlflow
from mlflow.entities import Run

from fractal_model.metrics.names import FID
from fractal_model.tracking import registry
from fractal_model.tracking.descriptions import (
    EVALUATION_HEADING,
    describe_evaluation,
    evaluation_line,
    link_to_run,
)
from fractal_model.tracking.store import find_run
from fractal_model.tracking.tags import NOTE_TAG, PROTOCOL_TAG, TRAINING_RUN_TAG

_EVALUATIONS = "**Evaluations of the trained model**"


def link_evaluation(size: str, version: str, run_id: str) -> None:
    """Link the evaluation `run_id` of a version with the run that trained the version, in both
    directions. FractalError or MlflowException: MLflow does not answer."""
    training_id = registry.training_run_id(size, version)
    training = None if training_id is None else find_run(training_id)
    evaluation = mlflow.get_run(run_id)
    if training is None:  # The version was imported, or a person deleted the run.
        return
    _set_tags(evaluation, {TRAINING_RUN_TAG: training.info.run_id})
    _append(evaluation, f"\n\nThe model comes from {link_to_run(training)}.")
    protocol = evaluation.data.tags[PROTOCOL_TAG]
    _set_tags(training, {registry.evaluation_tag(protocol): run_id})
    heading = "" if _EVALUATIONS in _note(training) else f"\n\n{_EVALUATIONS}\n"
    _append(training, f"{heading}\n{evaluation_line(evaluation)}")


def show_numbers(size: str, version: str, run_id: str, *, is_preview: bool) -> None:
    """Write the metrics of the evaluation `run_id` into the description of a version.
    MlflowException: MLflow does not answer."""
    client, name = mlflow.MlflowClient(), registry.model_name(size)
    text = client.get_model_version(name, version).description or ""
    rest, _, numbers = text.partition(EVALUATION_HEADING)
    if is_preview and f"`{FID}`" in numbers:
        return
    client.update_model_version(name, version, rest + describe_evaluation(mlflow.get_run(run_id)))


def _note(run: Run) -> str:
    return run.data.tags.get(NOTE_TAG, "")


def _append(run: Run, text: str) -> None:
    _set_tags(run, {NOTE_TAG: _note(run) + text})


def _set_tags(run: Run, new_tags: dict[str, str]) -> None:
    for key, value in new_tags.items():
        mlflow.MlflowClient().set_tag(run.info.run_id, key, value)
