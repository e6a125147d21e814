"""Files with the newest results of a size, in the folder `<outputs>/<size>`, which DVC tracks.

model.json      the version that a training registered     fractal evaluate FILE --size SIZE
training.json   last loss and held-out likelihood          dvc metrics show
loss.csv        loss by epoch                              dvc plots show
held-out.csv    held-out bits per dimension by epoch       dvc plots show
metrics.json    metrics of an evaluation                   dvc metrics show

Decided here: the same training and evaluation write the same bytes, so nothing has times or speeds.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import mlflow
import pandas as pd

from fractal_model.checkpoints.checkpoint import CHECKSUMS
from fractal_model.common.errors import FractalError
from fractal_model.common.files import atomic_file
from fractal_model.common.strict import StrictModel
from fractal_model.common.validation import read_json
from fractal_model.metrics.names import FID, NLL, SPEED
from fractal_model.tracking import registry
from fractal_model.tracking.runs import read_metrics
from fractal_model.tracking.tags import FINGERPRINT_TAG, TRAINING_RUN_TAG
from fractal_model.tracking.training_history import curve

MODEL_FILE = "model.json"
LOSS = "loss"
_CURVES = {LOSS: "loss.csv", NLL: "held-out.csv"}


class TrainedModel(StrictModel):
    """The version of a registered model that a training made."""

    model: str
    """Address of the version, such as models:/fractal-digits/1."""
    fingerprint: str
    """Fingerprint of the training."""
    checksums: dict[str, str]
    """SHA-256 of the checkpoint's files."""


def write_training_files(size: str, version: str, folder: Path) -> None:
    """Write the files about the training of a version to `folder`. A metric that was not measured
    has a table without rows."""
    uri = f"models:/{registry.model_name(size)}/{version}"
    tags = registry.version_tags(size, version)
    sums = mlflow.artifacts.load_text(f"{uri}/artifacts/checkpoint/{CHECKSUMS}")
    trained = TrainedModel(model=uri, fingerprint=tags[FINGERPRINT_TAG], checksums=json.loads(sums))
    run_id = tags[TRAINING_RUN_TAG]
    metrics = read_metrics(run_id)
    last = {n: metrics[n] for n in metrics if n == LOSS or n.startswith((NLL, FID))}
    _write(folder / MODEL_FILE, trained.model_dump())
    # One level deeper, so that an evaluation's metrics of the same name keep their short names.
    _write(folder / "training.json", {"training": dict(sorted(last.items()))})
    for metric, name in _CURVES.items():
        points = pd.DataFrame(curve(run_id, metric), columns=["epoch", metric])
        with atomic_file(folder / name) as partial:
            points.to_csv(partial, index=False)


def write_evaluation_file(metrics: Mapping[str, float], folder: Path) -> None:
    """Write the metrics of an evaluation to `folder`, without the speed of sampling."""
    _write(folder / "metrics.json", {k: metrics[k] for k in sorted(metrics) if k not in SPEED})


def read_model_file(source: str | None) -> str | None:
    """Return the address of the version that the file `source`, the model.json of a training,
    names. Another source of a model, or None, is returned unchanged. FractalError: the file is
    missing or damaged, or the connected MLflow store does not have this version, or has another
    model under its number."""
    if source is None or Path(source).name != MODEL_FILE:
        return source
    file = Path(source)
    if not file.is_file():
        raise FractalError(f"{file} is missing: train the model, or name a registered version")
    trained = read_json(file, TrainedModel, "the file of a trained model")
    version = registry.find_version(trained.model)
    size = version.name.removeprefix(registry.model_name(""))
    if registry.version_tags(size, version.number).get(FINGERPRINT_TAG) != trained.fingerprint:
        raise FractalError(
            f"{trained.model} in the registry is not the model of {file}: train it again, with "
            f"`dvc repro --force --single-item train@{size}` if DVC trained it"
        )
    return trained.model


def _write(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")
