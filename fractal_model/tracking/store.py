"""Connects to MLflow: the server in MLFLOW_TRACKING_URI, or else a SQLite file in the outputs."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import mlflow
from mlflow.entities import LifecycleStage, Run
from mlflow.exceptions import MlflowException

from fractal_model.common.errors import FractalError
from fractal_model.common.safe_text import without_user
from fractal_model.tracking.descriptions import describe_experiment
from fractal_model.tracking.local_store import (
    SCHEME,
    STORE_ERRORS,
    describe_store_error,
    is_absence,
    local_artifacts,
    prepare_database,
    prepare_local_store,
    store_reason,
)
from fractal_model.tracking.tags import NOTE_TAG

EXPERIMENT_PREFIX = "fractal-"
"""First part of an experiment's name. The rest is the name of the experiment's data set."""
T = TypeVar("T")


def connect(outputs: Path) -> str:
    """Make MLflow use the store in MLFLOW_TRACKING_URI or, if that is not set, a SQLite file in
    `outputs`, which is created if missing. Return the store's address. FractalError: the server
    does not answer, or the file cannot be used."""
    # MLflow logs every table that it creates.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    is_default = not uri
    if is_default:
        uri = f"{SCHEME}{prepare_local_store(outputs)}"
    elif uri.startswith(SCHEME):
        prepare_database(Path(uri.removeprefix(SCHEME).partition("?")[0]))
    try:
        use_store(uri)
        if is_default:
            # MLflow has just set the variable. From now on it would look like the user's choice.
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        mlflow.MlflowClient().search_experiments(max_results=1)
    except (*STORE_ERRORS, ValueError, ImportError) as error:
        if uri.startswith(SCHEME):
            raise FractalError(describe_store_error(error, uri)) from error
        raise FractalError(
            f"the MLflow store {uri} does not answer ({store_reason(error)}): start the server, or "
            f"unset MLFLOW_TRACKING_URI to use a local file"
        ) from error
    return uri


def use_store(uri: str) -> None:
    """Make MLflow use the store at the address `uri`. A failed request is repeated for about 13 s,
    not for minutes as by default, unless MLFLOW_HTTP_REQUEST_MAX_RETRIES is set.

    A user and password in a server's address replace MLFLOW_TRACKING_USERNAME and
    MLFLOW_TRACKING_PASSWORD, and are removed from the address, because MLflow prints it."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    parts = urlsplit(uri) if uri.startswith("http") else None
    if parts is not None and parts.username and parts.password:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
        uri = without_user(uri)
    mlflow.set_tracking_uri(uri)


def get_or_create_experiment(dataset: str, outputs: Path) -> str:
    """Return the id of the data set's experiment `fractal-<dataset>`; create it if it is missing.
    FractalError: a person has deleted it, and MLflow reserves its name until it is purged."""
    name = f"{EXPERIMENT_PREFIX}{dataset}"
    experiment = mlflow.get_experiment_by_name(name)
    if experiment is not None:
        if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
            raise FractalError(
                f"the experiment {name} was deleted in MLflow: restore it with `mlflow experiments "
                f"restore` (its id is {experiment.experiment_id}), or purge it with `mlflow gc`"
            )
        return experiment.experiment_id
    local = tracking_uri().startswith("sqlite:")
    artifacts = local_artifacts(outputs).as_uri() if local else None
    try:
        experiment_id = mlflow.create_experiment(name, artifact_location=artifacts)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return get_or_create_experiment(dataset, outputs)  # Another process was faster.
    description = describe_experiment(dataset, experiment_id)
    mlflow.MlflowClient().set_experiment_tag(experiment_id, NOTE_TAG, description)
    return experiment_id


def tracking_uri() -> str:
    """Address of the store that MLflow uses: a server's URL, or `sqlite:///` and a path."""
    return mlflow.get_tracking_uri()


def find_runs(experiment_ids: Sequence[str], tags: Mapping[str, str]) -> list[Run]:
    """Return all runs of the experiments that have these tags, newest first."""
    if not experiment_ids:
        return []  # With an empty list MLflow would search the active experiment.
    return mlflow.search_runs(
        list(experiment_ids),
        " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items()),
        order_by=["attributes.start_time DESC"],
        output_format="list",
    )


def find_run(run_id: str) -> Run | None:
    """Return the run with this id; None if it was deleted. FractalError: MLflow does not answer."""
    run = look_up(f"the run {run_id}", lambda: mlflow.get_run(run_id))
    is_deleted = run is None or run.info.lifecycle_stage != LifecycleStage.ACTIVE
    return None if is_deleted else run


def look_up(subject: str, request: Callable[[], T]) -> T | None:
    """Return the result of a request to MLflow; None if MLflow has no such run, model or alias.
    `subject` names the requested object in the error text. FractalError: MLflow does not answer."""
    try:
        return request()
    except MlflowException as error:
        if is_absence(error):
            return None
        raise FractalError(
            f"MLflow could not look up {subject} ({store_reason(error)}): nothing was changed, run "
            f"again"
        ) from error


def utc_now() -> str:
    """This machine's time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def run_page(run_id: str) -> str | None:
    """Address of a run's page in the server's UI; None if the store is a local file."""
    uri = without_user(mlflow.get_tracking_uri())
    if not uri.startswith("http"):
        return None
    experiment_id = mlflow.get_run(run_id).info.experiment_id
    return f"{uri.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"
