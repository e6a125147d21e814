"""Which MLflow store: the server in MLFLOW_TRACKING_URI, else a SQLite file in the outputs."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from fractal_model.common.errors import FractalError, one_line
from fractal_model.tracking.descriptions import NOTE_TAG, describe_experiment

EXPERIMENT_PREFIX = "fractal-"
"""Before the data set in an experiment's name."""


def connect(outputs: Path) -> str:
    """Point MLflow to its store, made if need be; return its address.

    FractalError: a server that does not answer.
    """
    # MLflow announces every table that it creates; what matters is said by the commands.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        folder = outputs / "mlflow"
        folder.mkdir(parents=True, exist_ok=True)
        uri = f"sqlite:///{folder / 'mlflow.db'}"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    chosen_by_user = "MLFLOW_TRACKING_URI" in os.environ
    mlflow.set_tracking_uri(uri)
    if not chosen_by_user:
        # MLflow has just set it; left there, it would pass for the user's choice ever after.
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    try:
        mlflow.MlflowClient().search_experiments(max_results=1)
    except MlflowException as error:
        raise FractalError(
            f"the MLflow store {uri} does not answer ({one_line(error)}): start the server, or "
            f"unset MLFLOW_TRACKING_URI to use a local file"
        ) from error
    return uri


def use_store(uri: str) -> None:
    """Point MLflow to the store that another process has connected to."""
    mlflow.set_tracking_uri(uri)


def experiment(dataset: str, outputs: Path) -> str:
    """The id of the data set's experiment `fractal-<dataset>`, created if need be."""
    name = f"{EXPERIMENT_PREFIX}{dataset}"
    found = mlflow.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    local = mlflow.get_tracking_uri().startswith("sqlite:")
    artifacts = (outputs / "mlflow" / "artifacts").as_uri() if local else None
    tags = {NOTE_TAG: describe_experiment(dataset)}
    return mlflow.create_experiment(name, artifact_location=artifacts, tags=tags)


def tracking_uri() -> str:
    """Of the store that `connect` has chosen."""
    return mlflow.get_tracking_uri()


def run_page(run_id: str) -> str | None:
    """The page of a run in the server's UI; None where there is no server."""
    uri = mlflow.get_tracking_uri()
    if not uri.startswith("http"):
        return None
    experiment_id = mlflow.get_run(run_id).info.experiment_id
    return f"{uri.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"
