"""MLflow runs, from training to sweep: what is written down, under which names."""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import mlflow
from matplotlib.figure import Figure
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from torch import Tensor

import fractal_model
from fractal_model.common.fingerprint import fingerprint as checksum_of
from fractal_model.config.params import Size
from fractal_model.config.sampling import SamplingConfig
from fractal_model.data.manifest import Manifest
from fractal_model.evaluation.protocol import PROTOCOL_TAG, RECORD_FILE, Record
from fractal_model.metrics.image_metrics import MetricResults, results_table
from fractal_model.tracking.descriptions import NOTE_TAG, describe_run
from fractal_model.tracking.registry import FINGERPRINT_TAG
from fractal_model.tracking.store import experiment

matplotlib.use("Agg")

SIZE_TAG, KIND_TAG = "fractal.size", "fractal.kind"
SUPERSEDED_TAG = "fractal.superseded"
"""Of a training run that was begun anew: nothing is added to it any more."""
VERSION_TAG = "fractal.model_version"
"""Of an evaluation: the version that it is of."""
SOURCE_TAG = "fractal.source_sha256"
"""SHA-256 of the file that a model was imported from."""
SETTING_TAG = "fractal.setting"
"""Of a sweep's child run: the checksum of its sampling settings."""
BEST_RUN_TAG = "fractal.evaluation_run"
"""Of a sweep that is done: the run that evaluated its best setting by the full protocol."""


@contextmanager
def training_run(size: Size, manifest: Manifest, fingerprint: str, outputs: Path) -> Iterator[str]:
    """The run of this fingerprint: the interrupted one if there is one, unless it is superseded,
    else a new one.

    Logs parameters, data set, git revision and, where training is on this machine, its system
    metrics; yields the run's id.
    """
    here = "RAY_ADDRESS" not in os.environ
    experiment_id = experiment(size.training.dataset, outputs)
    known = _training_runs(experiment_id, fingerprint)
    run_id = known[0].info.run_id if known else None
    name = f"train-{size.name}-{fingerprint[:8]}"
    with mlflow.start_run(run_id, experiment_id, run_name=name, log_system_metrics=here) as run:
        if not known:
            mlflow.log_params(_flat({"model": size.model.model_dump(exclude={"class_names"})}))
            mlflow.log_params(_flat({"training": size.training.model_dump()}))
            _log_dataset(manifest, "training")
        # Last: a run that is found by its fingerprint has all of the above.
        _tag(size, "train", {FINGERPRINT_TAG: fingerprint})
        yield run.info.run_id


def supersede_training(size: Size, fingerprint: str, outputs: Path) -> None:
    """The runs of this fingerprint are not gone on with: the next one is a new run."""
    for run in _training_runs(experiment(size.training.dataset, outputs), fingerprint):
        mlflow.MlflowClient().set_tag(run.info.run_id, SUPERSEDED_TAG, "true")


def _training_runs(experiment_id: str, fingerprint: str) -> list[Run]:
    """Newest first."""
    found = mlflow.search_runs(
        [experiment_id],
        f"tags.`{FINGERPRINT_TAG}` = '{fingerprint}' and tags.`{KIND_TAG}` = 'train'",
        output_format="list",
    )
    return [run for run in found if SUPERSEDED_TAG not in run.data.tags]


@contextmanager
def evaluation_run(size: Size, manifest: Manifest, record: Record, outputs: Path) -> Iterator[str]:
    """A new run that evaluates a model, its record as `protocol.json`; yields its id."""
    experiment_id = experiment(size.training.dataset, outputs)
    what = f"v{record.version}" if record.version else (record.model_checksum or "")[:8]
    kind = "preview" if record.protocol.preview else "evaluate"
    name = f"{kind}-{size.name}-{what}-{record.checksum[:6]}"
    with mlflow.start_run(None, experiment_id, run_name=name) as run:
        version = {VERSION_TAG: record.version} if record.version else {}
        _tag(size, "evaluate", version | {PROTOCOL_TAG: record.checksum})
        settings = size.evaluation.model_dump() | {
            "samples": record.protocol.samples,
            "samples_per_class": record.protocol.samples_per_class,
        }
        mlflow.log_params(_flat({"sampling": size.sampling.model_dump(), "evaluation": settings}))
        mlflow.log_dict(record.model_dump(mode="json"), RECORD_FILE)
        _log_dataset(manifest, "evaluation")
        yield run.info.run_id


@contextmanager
def import_run(size: Size, source: Path, checksum: str, outputs: Path) -> Iterator[str]:
    """A new run that registers a model from a published file; yields its id."""
    experiment_id = experiment(size.training.dataset, outputs)
    name = f"import-{size.name}-{checksum[:8]}"
    with mlflow.start_run(None, experiment_id, run_name=name) as run:
        _tag(size, "import", {SOURCE_TAG: checksum, "fractal.source": source.name})
        # The names are in the checkpoint; a thousand of them do not fit a parameter.
        mlflow.log_params(_flat({"model": size.model.model_dump(exclude={"class_names"})}))
        yield run.info.run_id


@contextmanager
def sweep_run(size: Size, version: str, mark: str, outputs: Path) -> Iterator[str]:
    """The parent run of the sweep with this checksum: the interrupted one, else a new one."""
    tags = {FINGERPRINT_TAG: mark, "fractal.model_version": version}
    name = f"sweep-{size.name}-v{version}"
    with _sweep_run(size, name, tags, f"tags.`{FINGERPRINT_TAG}` = '{mark}'", outputs) as run_id:
        yield run_id


@contextmanager
def setting_run(
    size: Size, setting: SamplingConfig, parent: str, outputs: Path
) -> Iterator[dict[str, float]]:
    """The child run of a setting within the active parent; yields the metrics that it has."""
    mark = checksum_of(setting)
    tags = {SETTING_TAG: mark, MLFLOW_PARENT_RUN_ID: parent}
    name = f"guidance {setting.guidance:g}, logit scale {setting.logit_scale:g}"
    found = f"tags.`{SETTING_TAG}` = '{mark}' and tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent}'"
    with _sweep_run(size, name, tags, found, outputs, nested=True) as run_id:
        mlflow.log_params(_flat({"sampling": setting.model_dump()}))
        yield mlflow.get_run(run_id).data.metrics


@contextmanager
def _sweep_run(
    size: Size, name: str, tags: dict[str, str], query: str, outputs: Path, *, nested: bool = False
) -> Iterator[str]:
    experiment_id = experiment(size.training.dataset, outputs)
    known = mlflow.search_runs(
        [experiment_id],
        f"{query} and tags.`{KIND_TAG}` = 'sweep'",
        max_results=1,
        output_format="list",
    )
    run_id = known[0].info.run_id if known else None
    with mlflow.start_run(run_id, experiment_id, run_name=name, nested=nested) as run:
        _tag(size, "sweep", tags)
        yield run.info.run_id


def log_preview(results: MetricResults) -> None:
    """Of the active child run: metrics, and as tags why others are absent."""
    mlflow.log_metrics(results.values)
    mlflow.set_tags({f"fractal.absent.{name}": why for name, why in results.absent.items()})


def report_values(report: Mapping[str, float]) -> tuple[dict[str, float], int]:
    """The metrics of a report, and their step in MLflow: the position in images, so that runs
    compare."""
    values = {key: value for key, value in report.items() if key not in ("position", "step")}
    return values, int(report["position"])


def last_position(run_id: str) -> int:
    """Up to where a training run has reported to MLflow; −1: nothing yet, or MLflow is away."""
    try:
        points = mlflow.MlflowClient().get_metric_history(run_id, "epoch")
    except MlflowException:
        return -1
    return max((point.step for point in points), default=-1)


def loss_curve(run_id: str | None) -> tuple[tuple[float, float], ...]:
    """Pairs of epoch and loss of a training run, by epoch; none where there is no such run."""
    return curve(run_id, "loss")


def curve(run_id: str | None, metric: str) -> tuple[tuple[float, float], ...]:
    """Pairs of epoch and metric of a training run, by epoch; none where there is no such run."""
    if run_id is None:
        return ()
    client = mlflow.MlflowClient()
    try:
        epochs, values = (client.get_metric_history(run_id, key) for key in ("epoch", metric))
    except MlflowException:  # deleted since
        return ()
    value_at = {point.step: point.value for point in values}
    pairs = [(p.value, value_at[p.step]) for p in epochs if p.step in value_at]
    return tuple(sorted(pair for pair in pairs if all(map(math.isfinite, pair))))


def log_results(results: MetricResults) -> None:
    """Metrics, a table of them with the reasons of the absent ones, as artifact `results.json`."""
    mlflow.log_metrics(results.values)
    mlflow.log_table(results_table(results), "results.json")


def log_figure(figure: Figure, name: str) -> None:
    """As the PNG artifact `name` of the active run."""
    mlflow.log_figure(figure, name, save_kwargs={"dpi": 150, "facecolor": "white"})


def log_picture(image: Tensor, name: str) -> None:
    """(3, H, W) uint8 as the PNG artifact `name` of the active run."""
    mlflow.log_image(image.permute(1, 2, 0).cpu().numpy(), name)


def git_revision() -> str:
    """Of the working folder, with `-dirty` where it has changes; `unknown` outside a clone."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _tag(size: Size, kind: str, more: dict[str, str]) -> None:
    tags = {
        SIZE_TAG: size.name,
        KIND_TAG: kind,
        NOTE_TAG: describe_run(kind, size.name, size.training.dataset),
        "fractal.version": fractal_model.__version__,
        "fractal.git_revision": git_revision(),
    }
    mlflow.set_tags({**tags, **more})


def _log_dataset(manifest: Manifest, context: str) -> None:
    source = CodeDatasetSource(tags={"mlflow.source.name": manifest.source})
    digest = manifest.checksum[:36]  # MLflow's limit
    dataset = MetaDataset(source=source, name=manifest.dataset, digest=digest)
    mlflow.log_input(dataset, context=context)
    mlflow.set_tag("fractal.dataset_checksum", manifest.checksum)


def _flat(tree: dict[str, object], prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} to {"a.b": 1}; lists by index."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, list | tuple) and any(isinstance(v, dict) for v in value):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
