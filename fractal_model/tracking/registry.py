"""The model registry: versions of `fractal-<size>`, their checkpoints and their aliases.

Decided here: a version's tags say which run trained it and which evaluated it under which protocol,
so that nothing is done twice; how versions come to be is `registration.py`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.entities import LifecycleStage, RunStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from fractal_model.common.errors import FractalError, one_line

CANDIDATE, CHAMPION = "candidate", "champion"
FINGERPRINT_TAG = "fractal.fingerprint"
TRAINING_RUN_TAG = "fractal.training_run"
EVALUATION_TAG = "fractal.evaluation"
"""Tag of a version, `<this>.<protocol>`: the run that evaluated it under that protocol."""
DECISION_TAG = "fractal.decision"
"""Tag of a version: the reason of the last decision about it; `<this>.<name>` are its details."""
_NOTHING_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@dataclass(frozen=True)
class RegisteredCheckpoint:
    """One version of a registered model, with its checkpoint on this machine."""

    version: str
    checkpoint: Path
    tags: dict[str, str]


def model_name(size: str) -> str:
    return f"fractal-{size}"


def nominate(size: str, version: str) -> None:
    """Point `candidate` to a version."""
    mlflow.MlflowClient().set_registered_model_alias(model_name(size), CANDIDATE, version)


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
            f"{', '.join(known) or '(none)'}; train one with `python -m flows.train`"
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
            f"no model models:/{model_name(size)}@{alias} is registered: train the size {size} "
            f"with `python -m flows.train`"
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
