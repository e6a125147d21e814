"""Writes MLflow runs of training, evaluation, import, sweep and study; reads their results."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import mlflow
import pandas as pd
from matplotlib.figure import Figure
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Run
from torch import Tensor

import fractal_model
from fractal_model.common.console import say
from fractal_model.common.errors import one_line
from fractal_model.common.safe_text import LONGEST_NAME, safe_text
from fractal_model.config.ddo import DDOConfig
from fractal_model.config.params import Size
from fractal_model.config.serving import ServingConfig
from fractal_model.data.manifest import Manifest
from fractal_model.evaluation.protocol import RECORD_FILE, Record
from fractal_model.evaluation.sweep_settings import describe_setting, setting_fingerprint
from fractal_model.metrics.image_metrics import MetricResults, results_table
from fractal_model.tracking import tags
from fractal_model.tracking.descriptions import describe_run, describe_start
from fractal_model.tracking.store import find_runs, get_or_create_experiment

RESULTS_FILE = "results.json"
SAMPLES_PICTURE = "samples.png"
"""Artifact of an evaluation: a grid of its samples."""


@contextmanager
def training_run(
    size: Size,
    manifest: Manifest,
    fingerprint: str,
    outputs: Path,
    start_tags: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[str]:
    """Continue the training run with this fingerprint, or begin a new run if there is none or it is
    superseded; yield the run's id. Parameters, data set and git revision are logged to the run. So
    are the system metrics of this machine, unless RAY_ADDRESS is set: then other machines may
    train.

    `start_tags`: tags that name the source of the first weights, unless they are random. A run that
    is continued keeps the tags of its first start.
    """
    here = "RAY_ADDRESS" not in os.environ
    name, key = f"train-{size.name}-{fingerprint[:8]}", {tags.FINGERPRINT_TAG: fingerprint}
    with _run(size, "train", name, outputs, key=key, system=here) as run:
        if tags.FINGERPRINT_TAG not in run.data.tags:
            _log_params(model=model_settings(size), training=size.training.model_dump())
            _log_dataset(manifest, "training")
            note = describe_run("train", size.name, size.training.dataset)
            mlflow.set_tags({**start_tags, tags.NOTE_TAG: note + describe_start(start_tags)})
        # This tag comes last, so that a run that is found by its fingerprint has all of the above.
        mlflow.set_tags(key)
        yield run.info.run_id


@contextmanager
def tuning_run(
    size: Size,
    settings: DDOConfig,
    manifest: Manifest,
    fingerprint: str,
    outputs: Path,
    start_tags: Mapping[str, str],
) -> Iterator[str]:
    """Continue the tuning run with this fingerprint, or begin one; yield the run's id. `start_tags`
    name the model that it starts from."""
    name, key = f"tune-{size.name}-{fingerprint[:8]}", {tags.FINGERPRINT_TAG: fingerprint}
    with _run(size, "tune", name, outputs, key=key) as run:
        if tags.FINGERPRINT_TAG not in run.data.tags:
            _log_params(
                model=model_settings(size),
                training=size.training.model_dump(),
                ddo=settings.model_dump(),
            )
            _log_dataset(manifest, "training")
            note = describe_run("tune", size.name, size.training.dataset)
            mlflow.set_tags({**start_tags, tags.NOTE_TAG: note + describe_start(start_tags)})
        mlflow.set_tags(key)
        yield run.info.run_id


def log_step(metrics: Mapping[str, float], step: int) -> None:
    """Log the metrics of a step to the active run."""
    mlflow.log_metrics(dict(metrics), step=step)


def supersede_training(size: Size, fingerprint: str, outputs: Path) -> None:
    """Tag training runs with this fingerprint as superseded: the next training begins a new run."""
    for run in _find_current_runs(size, "train", {tags.FINGERPRINT_TAG: fingerprint}, outputs):
        mlflow.MlflowClient().set_tag(run.info.run_id, tags.SUPERSEDED_TAG, "true")


@contextmanager
def evaluation_run(size: Size, manifest: Manifest, record: Record, outputs: Path) -> Iterator[str]:
    """Begin an evaluation run and log `record` to it as `protocol.json`; yield the run's id."""
    model = f"v{record.version}" if record.version else (record.model_checksum or "")[:8]
    kind = "preview" if record.protocol.is_preview else "evaluate"
    name = f"{kind}-{size.name}-{model}-{record.checksum[:6]}"
    counts = {key: getattr(record.protocol, key) for key in ("samples", "samples_per_class")}
    with _run(size, "evaluate", name, outputs) as run:
        version = {tags.VERSION_TAG: record.version} if record.version else {}
        mlflow.set_tags(version | {tags.PROTOCOL_TAG: record.checksum})
        settings = size.evaluation.model_dump() | counts
        _log_params(sampling=size.sampling.model_dump(), evaluation=settings)
        mlflow.log_dict(record.model_dump(mode="json"), RECORD_FILE)
        _log_dataset(manifest, "evaluation")
        yield run.info.run_id


@contextmanager
def import_run(size: Size, source: Path, checksum: str, outputs: Path) -> Iterator[str]:
    """Begin a run for the import of the file `source` with this SHA-256; yield the run's id."""
    with _run(size, "import", f"import-{size.name}-{checksum[:8]}", outputs) as run:
        name = safe_text(source.name, LONGEST_NAME)
        mlflow.set_tags({tags.SOURCE_CHECKSUM_TAG: checksum, tags.SOURCE_TAG: name})
        _log_params(model=model_settings(size))
        yield run.info.run_id


@contextmanager
def sweep_run(size: Size, version: str, fingerprint: str, outputs: Path) -> Iterator[str]:
    """Continue or begin the parent run of the sweep with this fingerprint; yield the run's id."""
    key = {tags.FINGERPRINT_TAG: fingerprint}
    with _run(size, "sweep", f"sweep-{size.name}-v{version}", outputs, key=key) as run:
        mlflow.set_tags({**key, tags.VERSION_TAG: version})
        yield run.info.run_id


@contextmanager
def study_run(size: Size, name: str, outputs: Path) -> Iterator[str]:
    """Continue or begin the parent run of the study `name`; yield the run's id."""
    key = {tags.STUDY_TAG: name}
    with _run(size, "study", f"study-{name}", outputs, key=key) as run:
        mlflow.set_tags(key)
        yield run.info.run_id


@contextmanager
def setting_run(
    size: Size, setting: ServingConfig, parent: str, outputs: Path
) -> Iterator[dict[str, float]]:
    """Continue or begin the child run of one setting of a sweep. `parent`: id of the sweep's run,
    which must be active. Yield the metrics that the child run has already."""
    name = describe_setting(setting, size)
    key = {tags.SETTING_TAG: setting_fingerprint(setting, size), tags.PARENT_TAG: parent}
    with _run(size, "sweep", name, outputs, key=key, nested=True) as run:
        mlflow.set_tags(key)
        _log_params(weights=setting.weights, sampling=setting.sampling.model_dump())
        yield run.data.metrics


@contextmanager
def _run(
    size: Size,
    kind: str,
    name: str,
    outputs: Path,
    *,
    key: Mapping[str, str] | None = None,
    nested: bool = False,
    system: bool | None = None,
) -> Iterator[mlflow.ActiveRun]:
    """Continue the newest run that has the tags `key` and is not superseded. If there is none, or
    `key` is None, begin a run. `system`: log system metrics; None means MLflow's default."""
    earlier = _find_current_runs(size, kind, key, outputs) if key else []
    run_id = earlier[0].info.run_id if earlier else None
    experiment_id = get_or_create_experiment(size.training.dataset, outputs)
    with mlflow.start_run(run_id, experiment_id, name, nested, log_system_metrics=system) as run:
        shared_tags = {
            tags.SIZE_TAG: size.name,
            tags.KIND_TAG: kind,
            # A run that is continued keeps its description, which a person may have changed.
            tags.NOTE_TAG: run.data.tags.get(tags.NOTE_TAG)
            or describe_run(kind, size.name, size.training.dataset),
            tags.PACKAGE_TAG: fractal_model.__version__,
            tags.REVISION_TAG: git_revision(),
        }
        mlflow.set_tags(shared_tags)
        yield run


def _find_current_runs(size: Size, kind: str, key: Mapping[str, str], outputs: Path) -> list[Run]:
    """Return the runs of a kind that have the tags `key` and are not superseded, newest first."""
    experiments = [get_or_create_experiment(size.training.dataset, outputs)]
    runs = find_runs(experiments, {**key, tags.KIND_TAG: kind})
    return [run for run in runs if tags.SUPERSEDED_TAG not in run.data.tags]


def log_preview(results: MetricResults) -> None:
    """Log a preview's metrics to the active run. For each metric without a value, a tag has the
    reason."""
    mlflow.log_metrics(results.values)
    reasons = {f"{tags.ABSENT_TAG}.{n}": safe_text(why) for n, why in results.absent.items()}
    mlflow.set_tags(reasons)


def log_sweep(table: pd.DataFrame, figures: Mapping[str, Figure]) -> None:
    """Log a sweep's table of tried settings, as `settings.json`, and figures to the active run."""
    mlflow.log_dict(table.to_dict(orient="split", index=False), "settings.json")
    for name, figure in figures.items():
        log_figure(figure, name)


def log_best_setting(setting: ServingConfig, evaluation_run_id: str) -> None:
    """Log the best setting of a sweep to the sweep's active run, with the metrics and the id of the
    run that evaluated this setting by the full protocol."""
    mlflow.log_metrics(read_metrics(evaluation_run_id))
    _log_params(best={"weights": setting.weights, **setting.sampling.model_dump()})
    mlflow.set_tag(tags.BEST_RUN_TAG, evaluation_run_id)


def read_metrics(run_id: str) -> dict[str, float]:
    """Read the newest value of each metric of a run."""
    return mlflow.get_run(run_id).data.metrics


def read_params(run_id: str) -> dict[str, str]:
    """Read the parameters of a run."""
    return mlflow.get_run(run_id).data.params


def read_results(run_id: str) -> pd.DataFrame:
    """Read the table that `log_results` has logged to a run."""
    return pd.DataFrame(**mlflow.artifacts.load_dict(f"runs:/{run_id}/{RESULTS_FILE}"))


def log_results(results: MetricResults, manifest: Manifest, model_id: str | None) -> None:
    """Log metrics on a data set to the active run and, unless `model_id` is None, to the MLflow
    model of that id, which becomes an input of the run. The artifact `results.json` lists all
    metrics, with the reason for each missing value."""
    mlflow.log_metrics(results.values, model_id=model_id, dataset=_dataset(manifest))
    mlflow.log_table(results_table(results), RESULTS_FILE)


def log_figure(figure: Figure, name: str) -> None:
    """Log a figure as the PNG artifact `name` of the active run."""
    mlflow.log_figure(figure, name, save_kwargs={"dpi": 150, "facecolor": "white"})


def log_picture(image: Tensor, name: str) -> None:
    """Log a (3, H, W) uint8 image as the PNG artifact `name` of the active run."""
    mlflow.log_image(image.permute(1, 2, 0).cpu().numpy(), name)


def log_file(file: Path) -> None:
    """Log a file as an artifact of the active run, under its own name."""
    mlflow.log_artifact(str(file))


def download(run_id: str, name: str, folder: Path) -> Path:
    """Download the artifact `name` of a run into `folder`; return its path there."""
    return Path(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/{name}", dst_path=str(folder)))


@contextmanager
def optional_step(name: str) -> Iterator[None]:
    """Run the `with` block, which only displays results. If it raises, print the reason and go
    on."""
    try:
        yield
    except Exception as error:  # What only displays results must not end the flow.
        say(f"the {name} is left out: {one_line(error)}")


def git_revision() -> str:
    """Git commit of the working folder, with `-dirty` if files changed; `unknown` without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def model_settings(size: Size) -> dict[str, object]:
    """Settings of the size's model without the class names: a thousand names are too long for a
    parameter of MLflow. The names are stored in the checkpoint."""
    return size.model.model_dump(exclude={"class_names"})


def flatten_settings(**tree: object) -> dict[str, str]:
    """Return nested settings as MLflow's parameters: `a={"b": 1}` gives {"a.b": "1"}."""
    return dict(pair for name in tree for pair in _flat(tree[name], name))


def _log_params(**tree: object) -> None:
    mlflow.log_params(flatten_settings(**tree))


def _dataset(manifest: Manifest) -> MetaDataset:
    source = CodeDatasetSource(tags={"mlflow.source.name": safe_text(manifest.source)})
    digest = manifest.checksum[:36]  # MLflow's longest digest
    # MLflow declares `profile` as abstract, but this class of MLflow does not implement it.
    return MetaDataset(source, name=manifest.dataset, digest=digest)  # type: ignore[abstract]


def _log_dataset(manifest: Manifest, context: str) -> None:
    mlflow.log_input(_dataset(manifest), context=context)
    mlflow.set_tag(tags.DATASET_TAG, manifest.checksum)


def _flat(value: object, name: str) -> Iterator[tuple[str, str]]:
    """Yield nested settings as pairs of a dotted name and a text: {"b": 1} under the name "a" gives
    ("a.b", "1"). Items of a list have their index as name."""
    if isinstance(value, list | tuple) and any(isinstance(item, dict) for item in value):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}")
    else:
        yield name, safe_text(value)
