"""Reads evaluations from MLflow: the newest one of each version and protocol."""

from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from fractal_model.common.errors import FractalError
from fractal_model.evaluation.protocol import RECORD_FILE, Record, read_record
from fractal_model.reporting.results_table import Row
from fractal_model.tracking.registry import model_name
from fractal_model.tracking.store import EXPERIMENT_PREFIX, find_runs, tracking_uri
from fractal_model.tracking.tags import KIND_TAG, PROTOCOL_TAG, SIZE_TAG, VERSION_TAG


def evaluations() -> list[Row]:
    """Return the newest finished evaluation of each combination of data set, size, version and
    protocol, the newest first. FractalError: the store has no finished evaluation."""
    experiments = mlflow.search_experiments(filter_string=f"name LIKE '{EXPERIMENT_PREFIX}%'")
    datasets = {e.experiment_id: e.name.removeprefix(EXPERIMENT_PREFIX) for e in experiments}
    newest: dict[tuple[str, ...], Run] = {}
    for run in find_runs(list(datasets), {KIND_TAG: "evaluate"}):
        tags = run.data.tags
        dataset, version = datasets[run.info.experiment_id], tags.get(VERSION_TAG, "")
        # A model without a version came from a folder. The run's name holds its weights' checksum.
        model = version or run.info.run_name
        key = (dataset, tags.get(SIZE_TAG, ""), version, model, tags.get(PROTOCOL_TAG, ""))
        if run.info.status == "FINISHED":
            newest.setdefault(key, run)
    if not newest:
        raise FractalError(
            f"the MLflow store {tracking_uri()} has no evaluated model: evaluate one with "
            f"`python -m flows.evaluate`"
        )
    return [_row(run, *key[:3]) for key, run in newest.items()]


def _row(run: Run, dataset: str, size: str, version: str) -> Row:
    record = _record(run)
    model = f"{model_name(size)} version {version}"
    if not version and record is not None:
        model = f"{model_name(size)}, {record.model}"
    protocol = None if record is None else record.protocol
    return Row(dataset, model, run.data.metrics, protocol, run.info.run_id)


def _record(run: Run) -> Record | None:
    """Return the record of an evaluation. None: the run was made before records existed, or another
    version of this package wrote its record."""
    try:
        uri = f"runs:/{run.info.run_id}/{RECORD_FILE}"
        return read_record(Path(mlflow.artifacts.download_artifacts(uri)))
    except (MlflowException, OSError, FractalError):
        return None
