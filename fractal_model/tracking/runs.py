"""MLflow runs, from training to sweep: what is written down, under which names."""

import math
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pandas as pd
from matplotlib.figure import Figure
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from torch import Tensor

import fractal_model
from fractal_model.common.console import say
from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.fingerprint import fingerprint as checksum_of
from fractal_model.common.safe_text import LONGEST_NAME, safe_text
from fractal_model.config.params import Size
from fractal_model.config.sampling import SamplingConfig
from fractal_model.data.manifest import Manifest
from fractal_model.evaluation.protocol import RECORD_FILE, Record
from fractal_model.metrics.image_metrics import MetricResults, results_table
from fractal_model.tracking import tags
from fractal_model.tracking.descriptions import describe_run
from fractal_model.tracking.store import find_runs, get_or_create_experiment

RESULTS_FILE = "results.json"


@contextmanager
def training_run(size: Size, manifest: Manifest, fingerprint: str, outputs: Path) -> Iterator[str]:
    """The run of this fingerprint: the interrupted one if there is one, unless it is superseded,
    else a new one.

    Logs parameters, data set, git revision and, where training is on this machine, its system
    metrics; yields the run's id.
    """
    here = "RAY_ADDRESS" not in os.environ
    name, same = f"train-{size.name}-{fingerprint[:8]}", {tags.FINGERPRINT_TAG: fingerprint}
    with _run(size, "train", name, outputs, same=same, system=here) as run:
        if tags.FINGERPRINT_TAG not in run.data.tags:
            _log_params(model=_model_settings(size), training=size.training.model_dump())
            _log_dataset(manifest, "training")
        # Last: a run that is found by its fingerprint has all of the above.
        mlflow.set_tags(same)
        yield run.info.run_id


def supersede_training(size: Size, fingerprint: str, outputs: Path) -> None:
    """Mark the runs of this fingerprint, so that the next training begins a new run."""
    for run in _unsuperseded(size, "train", {tags.FINGERPRINT_TAG: fingerprint}, outputs):
        mlflow.MlflowClient().set_tag(run.info.run_id, tags.SUPERSEDED_TAG, "true")


@contextmanager
def evaluation_run(size: Size, manifest: Manifest, record: Record, outputs: Path) -> Iterator[str]:
    """A new run that evaluates a model, its record as `protocol.json`; yields its id."""
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
    """A new run that registers a model from a published file; yields its id."""
    with _run(size, "import", f"import-{size.name}-{checksum[:8]}", outputs) as run:
        name = safe_text(source.name, LONGEST_NAME)
        mlflow.set_tags({tags.SOURCE_CHECKSUM_TAG: checksum, tags.SOURCE_TAG: name})
        _log_params(model=_model_settings(size))
        yield run.info.run_id


@contextmanager
def sweep_run(size: Size, version: str, fingerprint: str, outputs: Path) -> Iterator[str]:
    """The parent run of the sweep with this fingerprint: the interrupted one, else a new one;
    yields its id."""
    same = {tags.FINGERPRINT_TAG: fingerprint}
    with _run(size, "sweep", f"sweep-{size.name}-v{version}", outputs, same=same) as run:
        mlflow.set_tags({**same, tags.VERSION_TAG: version})
        yield run.info.run_id


@contextmanager
def setting_run(
    size: Size, setting: SamplingConfig, parent: str, outputs: Path
) -> Iterator[dict[str, float]]:
    """The child run of a setting within the active parent; yields the metrics that it has."""
    name = f"guidance {setting.guidance:g}, logit scale {setting.logit_scale:g}"
    same = {tags.SETTING_TAG: checksum_of(setting), tags.PARENT_TAG: parent}
    with _run(size, "sweep", name, outputs, same=same, nested=True) as run:
        mlflow.set_tags(same)
        _log_params(sampling=setting.model_dump())
        yield run.data.metrics


@contextmanager
def _run(
    size: Size,
    kind: str,
    name: str,
    outputs: Path,
    *,
    same: Mapping[str, str] | None = None,
    nested: bool = False,
    system: bool | None = None,
) -> Iterator[mlflow.ActiveRun]:
    """Go on with the newest run that has the tags `same`, as it was before; or begin a new one."""
    known = _unsuperseded(size, kind, same, outputs) if same else []
    run_id = known[0].info.run_id if known else None
    experiment_id = get_or_create_experiment(size.training.dataset, outputs)
    with mlflow.start_run(run_id, experiment_id, name, nested, log_system_metrics=system) as run:
        shared_tags = {
            tags.SIZE_TAG: size.name,
            tags.KIND_TAG: kind,
            tags.NOTE_TAG: describe_run(kind, size.name, size.training.dataset),
            tags.PACKAGE_TAG: fractal_model.__version__,
            tags.REVISION_TAG: git_revision(),
        }
        mlflow.set_tags(shared_tags)
        yield run


def _unsuperseded(size: Size, kind: str, same: Mapping[str, str], outputs: Path) -> list[Run]:
    """Runs of a kind that have the tags `same` and are not superseded, newest first."""
    experiments = [get_or_create_experiment(size.training.dataset, outputs)]
    found = find_runs(experiments, {**same, tags.KIND_TAG: kind})
    return [run for run in found if tags.SUPERSEDED_TAG not in run.data.tags]


def log_preview(results: MetricResults) -> None:
    """Metrics to the active child run, and as tags why others are absent."""
    mlflow.log_metrics(results.values)
    reasons = {f"{tags.ABSENT_TAG}.{n}": safe_text(why) for n, why in results.absent.items()}
    mlflow.set_tags(reasons)


def log_sweep(table: pd.DataFrame, figures: Mapping[str, Figure]) -> None:
    """All tried settings as the artifact `settings.json` of the active run, and its figures."""
    mlflow.log_dict(table.to_dict(orient="split", index=False), "settings.json")
    for name, figure in figures.items():
        log_figure(figure, name)


def log_best_setting(setting: SamplingConfig, evaluation_run_id: str) -> None:
    """The result of a sweep to its active run: the best setting, and the metrics and id of the run
    that evaluated it by the full protocol."""
    mlflow.log_metrics(read_metrics(evaluation_run_id))
    _log_params(best=setting.model_dump())
    mlflow.set_tag(tags.BEST_RUN_TAG, evaluation_run_id)


def read_metrics(run_id: str) -> dict[str, float]:
    """The newest value of each metric of a run."""
    return mlflow.get_run(run_id).data.metrics


def read_results(run_id: str) -> pd.DataFrame:
    """The table that `log_results` has logged to a run."""
    return pd.DataFrame(**mlflow.artifacts.load_dict(f"runs:/{run_id}/{RESULTS_FILE}"))


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
    """Metrics to the active run; as its artifact `results.json` a table of them, with the reasons
    of those that are absent."""
    mlflow.log_metrics(results.values)
    mlflow.log_table(results_table(results), RESULTS_FILE)


def log_figure(figure: Figure, name: str) -> None:
    """Log a figure as the PNG artifact `name` of the active run."""
    mlflow.log_figure(figure, name, save_kwargs={"dpi": 150, "facecolor": "white"})


def log_picture(image: Tensor, name: str) -> None:
    """Log (3, H, W) uint8 as the PNG artifact `name` of the active run."""
    mlflow.log_image(image.permute(1, 2, 0).cpu().numpy(), name)


def log_file(file: Path) -> None:
    """Log a file as an artifact of the active run, under its own name."""
    mlflow.log_artifact(str(file))


def download(run_id: str, name: str, folder: Path) -> Path:
    """Fetch an artifact of a run into a folder of this machine."""
    return Path(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/{name}", dst_path=str(folder)))


@contextmanager
def optional_step(name: str) -> Iterator[None]:
    """A step that only shows numbers: where it fails, the run that has them goes on without it."""
    try:
        yield
    except (FractalError, OSError, MlflowException) as error:
        say(f"the {name} is left out: {one_line(error)}")


def git_revision() -> str:
    """Of the working folder, with `-dirty` where it has changes; `unknown` outside a clone."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _model_settings(size: Size) -> dict[str, object]:
    """Without the names of the classes, which the checkpoint has: a thousand fit no parameter."""
    return size.model.model_dump(exclude={"class_names"})


def _log_params(**tree: object) -> None:
    mlflow.log_params(dict(pair for name in tree for pair in _flat(tree[name], name)))


def _log_dataset(manifest: Manifest, context: str) -> None:
    source = CodeDatasetSource(tags={"mlflow.source.name": safe_text(manifest.source)})
    digest = manifest.checksum[:36]  # MLflow's limit
    # MLflow marks `profile` as abstract, and makes this class without it.
    dataset = MetaDataset(source, name=manifest.dataset, digest=digest)  # type: ignore[abstract]
    mlflow.log_input(dataset, context=context)
    mlflow.set_tag(tags.DATASET_TAG, manifest.checksum)


def _flat(value: object, name: str) -> Iterator[tuple[str, object]]:
    """("a", {"b": 1}) as pairs such as ("a.b", 1); nested settings in lists by their index."""
    if isinstance(value, list | tuple) and any(isinstance(item, dict) for item in value):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}")
    else:
        yield name, safe_text(value) if isinstance(value, str) else value
