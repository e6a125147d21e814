"""The model registry: versions of `fractal-<size>`, their checkpoints and their aliases.

A registered version is a real MLflow model, code and checkpoint together (`served_model.py`).
Its tags say what it came from, so that a run that is unchanged finds it again.
"""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.entities import LifecycleStage, RunStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema
from mlflow.types.schema import AnyType
from pydantic import ValidationError

import fractal_model
from fractal_model.errors import FractalError, one_line
from fractal_model.serving import ServingConfig
from fractal_model.tracking.descriptions import describe_model, describe_version
from fractal_model.training.checkpoint import EMA_WEIGHTS, copy_for_sampling

CANDIDATE, CHAMPION = "candidate", "champion"
FINGERPRINT_TAG = "fractal.fingerprint"
TRAINING_RUN_TAG = "fractal.training_run"
EVALUATION_TAG = "fractal.evaluation"
"""Tag of a version, `<this>.<protocol>`: the run that evaluated it under that protocol."""
DECISION_TAG = "fractal.decision"
"""Tag of a version: the reason of the last decision about it; `<this>.<name>` are its details."""
SERVING = "serving"
_SERVING_FILE = f"{SERVING}.json"
_NOTHING_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
SERVED_PACKAGES = (
    "torch",
    "torchvision",
    "safetensors",
    "huggingface_hub",
    "pydantic",
    "numpy",
    "pandas",
    "pillow",
    "psutil",
)
_SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec(AnyType(), "class"),  # a number or a name
            ColSpec("long", "seed"),
            ColSpec("double", "guidance", required=False),
            ColSpec("double", "logit_scale", required=False),
        ]
    ),
    outputs=Schema([ColSpec("binary", "png")]),
)


@dataclass(frozen=True)
class RegisteredCheckpoint:
    """One version of a registered model, with its checkpoint on this machine."""

    version: str
    checkpoint: Path
    tags: dict[str, str]


def model_name(size: str) -> str:
    return f"fractal-{size}"


class _WithoutTrial:
    """MLflow's pyfunc flavour, but logging a model does not answer the input example with it: that
    would sample, for hours where the model is large and the machine has no GPU."""

    __name__ = "pyfunc"

    @staticmethod
    def save_model(path: str, *, validate_serving_input: bool, **settings: object) -> None:
        mlflow.pyfunc.save_model(path, **settings)


def register(size: str, checkpoint: Path, *, serving: ServingConfig, tags: dict[str, str]) -> str:
    """Log the checkpoint as a model of the active run, register it, point `candidate` to it.

    FractalError: it is damaged, or lacks the weights that it shall serve.
    """
    if serving.weights == "ema" and not (checkpoint / EMA_WEIGHTS).is_file():
        raise FractalError(
            f"the checkpoint {checkpoint} has no moving average of its weights, which "
            f"evaluation.{size}.weights asks for: set it to model, or train with ema_decay above 0"
        )
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        files = {"checkpoint": Path(scratch) / "checkpoint", SERVING: Path(scratch) / _SERVING_FILE}
        copy_for_sampling(checkpoint, files["checkpoint"])
        files[SERVING].write_text(serving.model_dump_json(indent=1))
        # MLflow advises type hints, which cannot say what the signature says.
        warnings.filterwarnings("ignore", message=".*Add type hints.*")
        logged = Model.log(
            artifact_path=None,  # the name's old one; it has no default
            name="model",
            flavor=_WithoutTrial,
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={name: str(file) for name, file in files.items()},
            code_paths=[str(Path(fractal_model.__file__).parent)],
            pip_requirements=[f"{name}=={installed(name)}" for name in SERVED_PACKAGES],
            signature=_SIGNATURE,
            input_example=_example(serving),
            validate_serving_input=False,
            registered_model_name=model_name(size),
        )
    client = mlflow.MlflowClient()
    number = str(logged.registered_model_version)
    # The alias first: once the tags let a later run find this version, it is the candidate.
    nominate(size, number)
    for key, value in tags.items():
        client.set_model_version_tag(model_name(size), number, key, value)
    client.update_registered_model(model_name(size), describe_model(size))
    client.update_model_version(model_name(size), number, describe_version(size, tags))
    return number


def _example(serving: ServingConfig) -> pd.DataFrame:
    """Two images of the first class, as they are served."""
    settings = serving.sampling
    return pd.DataFrame(
        {
            "class": [0, 0],
            "seed": [0, 1],
            "guidance": [settings.guidance] * 2,
            "logit_scale": [settings.logit_scale] * 2,
        }
    )


def serving_of(size: str, version: str) -> ServingConfig:
    """How a version serves. FractalError: its files are gone, or of another version of this
    package."""
    name = f"{model_name(size)}/{version}"
    try:
        text = mlflow.artifacts.load_text(f"models:/{name}/artifacts/{_SERVING_FILE}")
        return ServingConfig.model_validate_json(text)
    except (MlflowException, OSError, ValidationError) as error:
        raise FractalError(
            f"the registry {mlflow.get_tracking_uri()} does not say how models:/{name} serves "
            f"({one_line(error)}): train or import the model again"
        ) from error


def nominate(size: str, version: str) -> None:
    """Point `candidate` to a version."""
    mlflow.MlflowClient().set_registered_model_alias(model_name(size), CANDIDATE, version)


def reuse(size: str, fingerprint: str, serving: ServingConfig) -> str | None:
    """The newest version that an equal run has registered, made the candidate; None where there is
    none. Where none of them serves in this way, the newest is registered once more, so that what
    is evaluated under changed settings can be served under them."""
    equal = _of_equal_runs(size, fingerprint)
    for version in equal:
        if _serves(size, version.version, serving):
            nominate(size, str(version.version))
            return str(version.version)
    return _register_again(size, equal[0], serving) if equal else None


def _of_equal_runs(size: str, fingerprint: str) -> list[ModelVersion]:
    """The newest first."""
    found = mlflow.MlflowClient().search_model_versions(f"name = '{model_name(size)}'")
    equal = [version for version in found if version.tags.get(FINGERPRINT_TAG) == fingerprint]
    return sorted(equal, key=lambda version: int(version.version), reverse=True)


def serves_otherwise(size: str, version: str, evaluated: ServingConfig) -> str:
    """Why a version that was evaluated in this way is not the one that would be served, and the
    way out; "" where it is."""
    differences = serving_of(size, version).differences(evaluated)
    if not differences:
        return ""
    return (
        f"version {version} serves with {differences} as evaluated: train or import {size} again, "
        f"which registers the same weights once more with the settings of params.yaml"
    )


def _serves(size: str, version: str, serving: ServingConfig) -> bool:
    try:
        return serving_of(size, version) == serving
    except FractalError:  # registered by an earlier version of this package
        return False


def _register_again(size: str, version: ModelVersion, serving: ServingConfig) -> str:
    checkpoint = fetch_checkpoint(f"models:/{model_name(size)}/{version.version}")
    own = (EVALUATION_TAG, DECISION_TAG)  # what holds for that version alone
    tags = {key: value for key, value in version.tags.items() if not key.startswith(own)}
    with mlflow.start_run(version.run_id):
        return register(size, checkpoint, serving=serving, tags=tags)


def sizes() -> list[str]:
    """All sizes that have a registered model, by name."""
    found = mlflow.MlflowClient().search_registered_models(f"name LIKE '{model_name('%')}'")
    return sorted(model.name.removeprefix(model_name("")) for model in found)


def versions(size: str) -> list[ModelVersion]:
    """All versions of a size, the newest first. FractalError: it has no registered model."""
    known = sizes()
    if size not in known:
        raise FractalError(
            f"no model {model_name(size)} is registered: registered are the sizes "
            f"{', '.join(known) or '(none)'}; train one with `python -m flows.train --size SIZE`"
        )
    found = mlflow.MlflowClient().search_model_versions(f"name = '{model_name(size)}'")
    return sorted(found, key=lambda version: int(version.version), reverse=True)


def require_version(size: str, version: str) -> None:
    """FractalError: the size or the version is not registered."""
    there = [str(found.version) for found in versions(size)]
    if version not in there:
        choice = f"choose {' or '.join(there)}" if there else "it has none, train one"
        raise FractalError(f"{model_name(size)} has no version {version}: {choice}")


def aliased_version(size: str, alias: str) -> str | None:
    """The version that an alias points to; None where there is none."""
    try:
        found = mlflow.MlflowClient().get_model_version_by_alias(model_name(size), alias)
    except MlflowException as error:
        # An unknown alias is reported as an invalid parameter, an unknown model as not existing.
        if error.error_code in _NOTHING_THERE:
            return None
        raise FractalError(
            f"MLflow could not say what {model_name(size)}@{alias} is ({one_line(error)}): "
            f"nothing was changed, run again"
        ) from error
    return str(found.version)


def champion_run(size: str) -> str | None:
    """The MLflow run that trained the champion; None where there is none, or it was imported."""
    return training_run(size, aliased_version(size, CHAMPION))


def training_run(size: str, version: str | None) -> str | None:
    """The MLflow run that trained a version; None where it was imported, or there is no version."""
    return None if version is None else version_tags(size, version).get(TRAINING_RUN_TAG)


def resolve(size: str, alias: str = CANDIDATE) -> RegisteredCheckpoint:
    """Fetch a version's checkpoint. FractalError: nothing is registered under the alias."""
    number = aliased_version(size, alias)
    if number is None:
        raise FractalError(
            f"no model models:/{model_name(size)}@{alias} is registered: train one with "
            f"`python -m flows.train --size {size}`"
        )
    return fetch(size, number)


def fetch(size: str, version: str) -> RegisteredCheckpoint:
    """A version, with its checkpoint. FractalError: unknown, or its files are gone."""
    checkpoint = fetch_checkpoint(f"models:/{model_name(size)}/{version}")
    return RegisteredCheckpoint(version, checkpoint, version_tags(size, version))


def fetch_checkpoint(uri: str) -> Path:
    """The checkpoint folder of `models:/NAME@ALIAS` or `models:/NAME/VERSION`, downloaded where
    the store is not on this machine. FractalError: unknown, or its files are gone."""
    try:
        folder = Path(mlflow.artifacts.download_artifacts(uri))
    except (MlflowException, OSError) as error:
        raise FractalError(
            f"the registry {mlflow.get_tracking_uri()} has no files for {uri} "
            f"({one_line(error)}): check the name, or train or import the model again"
        ) from error
    checkpoints = [path for path in (folder / "artifacts").glob("*") if path.is_dir()]
    if len(checkpoints) != 1:
        raise FractalError(
            f"{uri} holds {len(checkpoints)} checkpoints in {folder}, expected 1: train again"
        )
    return checkpoints[0]


def promote(size: str, version: str) -> None:
    """Point `champion` to a version; `champions.py` sees to when."""
    mlflow.MlflowClient().set_registered_model_alias(model_name(size), CHAMPION, version)


def evaluation_tag(protocol_checksum: str) -> str:
    return f"{EVALUATION_TAG}.{protocol_checksum[:12]}"


def evaluation_of(size: str, version: str, protocol_checksum: str) -> str | None:
    """The finished run that evaluated a version under a protocol; None where there is none, or it
    was deleted since. FractalError: MLflow does not say."""
    run_id = version_tags(size, version).get(evaluation_tag(protocol_checksum))
    if run_id is None:
        return None
    try:
        info = mlflow.get_run(run_id).info
    except MlflowException as error:
        if error.error_code in _NOTHING_THERE:  # deleted for good
            return None
        raise FractalError(
            f"MLflow could not say what evaluated {model_name(size)} version {version} "
            f"({one_line(error)}): nothing was changed, run again"
        ) from error
    finished = info.status == RunStatus.to_string(RunStatus.FINISHED)
    return run_id if finished and info.lifecycle_stage == LifecycleStage.ACTIVE else None


def tag_version(size: str, version: str, key: str, value: str) -> None:
    mlflow.MlflowClient().set_model_version_tag(model_name(size), version, key, value)


def version_tags(size: str, version: str) -> dict[str, str]:
    return mlflow.MlflowClient().get_model_version(model_name(size), version).tags
