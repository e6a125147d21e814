"""What MLflow knows of evaluated models: the newest evaluation of each version and protocol."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from fractal_model.common.errors import FractalError
from fractal_model.evaluation.protocol import PROTOCOL_TAG, RECORD_FILE, Record, read_record
from fractal_model.tracking.registry import model_name
from fractal_model.tracking.runs import KIND_TAG, SIZE_TAG, VERSION_TAG
from fractal_model.tracking.store import EXPERIMENT_PREFIX, tracking_uri


@dataclass(frozen=True)
class Evaluation:
    """One finished evaluation run."""

    run_id: str
    dataset: str
    model: str
    """`fractal-digits version 3`, or the name of the folder that was evaluated."""
    values: dict[str, float]
    """Metrics by name."""
    record: Record | None
    """What the numbers were made with; None for a run that keeps none that can be read."""


def evaluations() -> list[Evaluation]:
    """The newest finished one of each data set, size, version and protocol, newest first.

    FractalError: the store has none.
    """
    names = {
        one.experiment_id: one.name.removeprefix(EXPERIMENT_PREFIX)
        for one in mlflow.search_experiments(filter_string=f"name LIKE '{EXPERIMENT_PREFIX}%'")
    }
    found: dict[tuple[str, ...], Run] = {}
    for run in _runs(list(names)):
        tags = run.data.tags
        dataset = names[run.info.experiment_id]
        version = tags.get(VERSION_TAG, "")
        # Without a version it is a folder's model: the weights tell which, named in the run's name.
        which = version or run.info.run_name
        key = (dataset, tags.get(SIZE_TAG, ""), version, which, tags.get(PROTOCOL_TAG, ""))
        found.setdefault(key, run)
    if not found:
        raise FractalError(
            f"the MLflow store {tracking_uri()} has no evaluated model: evaluate one with "
            f"`python -m flows.evaluate`"
        )
    return [
        _evaluation(run, dataset, size, version)
        for (dataset, size, version, *_), run in found.items()
    ]


def _runs(experiments: list[str]) -> list[Run]:
    """Finished evaluations, newest first."""
    if not experiments:
        return []
    return mlflow.search_runs(
        experiments,
        f"tags.`{KIND_TAG}` = 'evaluate' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        output_format="list",
    )


def _evaluation(run: Run, dataset: str, size: str, version: str) -> Evaluation:
    record = _record(run)
    model = f"{model_name(size)} version {version}"
    if not version and record is not None:
        model = f"{model_name(size)}, {record.model}"
    return Evaluation(run.info.run_id, dataset, model, run.data.metrics, record)


def _record(run: Run) -> Record | None:
    """Of an evaluation that was made before records were kept, or by another version: none."""
    try:
        uri = f"runs:/{run.info.run_id}/{RECORD_FILE}"
        return read_record(Path(mlflow.artifacts.download_artifacts(uri)))
    except (MlflowException, OSError, FractalError):
        return None
