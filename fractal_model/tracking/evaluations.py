"""Reads evaluations from MLflow: the newest one of each version and protocol, or one version's."""

from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from fractal_model.common.errors import FractalError
from fractal_model.evaluation.protocol import RECORD_FILE, Record, read_record
from fractal_model.model.fractal import FractalModel
from fractal_model.model.weights import weights_checksum
from fractal_model.reporting.results_table import Row
from fractal_model.tracking.registry import NamedVersion, model_name, version_tags
from fractal_model.tracking.store import EXPERIMENT_PREFIX, find_run, find_runs
from fractal_model.tracking.tags import (
    EVALUATION_TAG,
    KIND_TAG,
    PROTOCOL_TAG,
    SIZE_TAG,
    VERSION_TAG,
)


def evaluations() -> list[Row]:
    """Return the newest finished evaluation of each combination of data set, size, version and
    protocol, the newest first."""
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
    return [_row(run, *key[:3]) for key, run in newest.items()]


def find_evaluation(version: NamedVersion, model: FractalModel) -> Row | None:
    """Return the newest finished evaluation of a registered version that measured the weights of
    `model`; None if there is none. One with the sampling settings of `model` goes before others,
    and one of the full protocol before a preview."""
    size, checksum = version.name.removeprefix(model_name("")), weights_checksum(model)
    found: list[tuple[tuple[bool, bool, int], Row]] = []
    for key, run_id in version_tags(size, version.number).items():
        run = find_run(run_id) if key.startswith(f"{EVALUATION_TAG}.") else None
        record = _record(run) if run is not None and run.info.status == "FINISHED" else None
        if run is None or record is None or record.model_checksum != checksum:
            continue
        protocol = record.protocol
        is_served_so = (
            model.serving is not None
            and protocol.images is not None
            and protocol.images.sampling == model.serving.sampling
        )
        rank = (is_served_so, not protocol.is_preview, run.info.start_time)
        row = Row(protocol.dataset, record.model, run.data.metrics, protocol, run.info.run_id)
        found.append((rank, row))
    return max(found, key=lambda entry: entry[0])[1] if found else None


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
