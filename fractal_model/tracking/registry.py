"""The model registry: versions of `fractal-<size>`, their checkpoints and their aliases.

Decided here: a version's tags name the run that trained it and, for each protocol, the run that
evaluated it, so that nothing is computed twice. `registration.py` creates versions.
"""

from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.litter import is_litter
from fractal_model.tracking.local_store import describe_store_error, is_absence
from fractal_model.tracking.store import find_run, look_up, tracking_uri
from fractal_model.tracking.tags import EVALUATION_TAG, TRAINING_RUN_TAG

CANDIDATE, CHAMPION = "candidate", "champion"


@dataclass(frozen=True)
class RegisteredCheckpoint:
    """One version of a registered model, with its checkpoint on this machine."""

    version: str
    checkpoint: Path


@dataclass(frozen=True)
class NamedVersion:
    """A version of a registered model, without its files."""

    name: str
    """Name of the registered model, such as fractal-digits."""
    number: str
    training_run: str | None
    """Id of the MLflow run that trained the version; None if it was imported."""


def model_name(size: str) -> str:
    """Name of a size's registered model."""
    return f"fractal-{size}"


def set_alias(size: str, alias: str, version: str) -> None:
    """Point an alias to a version. Only `champions.py` may move the alias `champion`."""
    mlflow.MlflowClient().set_registered_model_alias(model_name(size), alias, version)


def sizes() -> list[str]:
    """All sizes that have a registered model, in the order of their names."""
    models = mlflow.MlflowClient().search_registered_models(f"name LIKE '{model_name('%')}'")
    return sorted(model.name.removeprefix(model_name("")) for model in models)


def versions(size: str) -> list[ModelVersion]:
    """All versions of a size, the newest first. FractalError: the size has no registered model."""
    registered_sizes = sizes()
    if size not in registered_sizes:
        raise FractalError(
            f"no model {model_name(size)} is registered: choose a registered size "
            f"({', '.join(registered_sizes) or 'there is none'}), or train this size with "
            f"`fractal train`"
        )
    unsorted = mlflow.MlflowClient().search_model_versions(f"name = '{model_name(size)}'")
    return sorted(unsorted, key=lambda version: int(version.version), reverse=True)


def require_version(size: str, version: str) -> None:
    """Raise FractalError if the size or the version is not registered."""
    existing = [str(registered.version) for registered in versions(size)]
    if version not in existing:
        choice = f"choose {' or '.join(existing)}" if existing else "no version exists, train one"
        raise FractalError(f"{model_name(size)} has no version {version}: {choice}")


def aliased_version(size: str, alias: str) -> str | None:
    """Number of the version that an alias points to; None if the alias or the model does not exist.
    FractalError: MLflow does not answer."""
    client, name = mlflow.MlflowClient(), model_name(size)
    version = look_up(f"{name}@{alias}", lambda: client.get_model_version_by_alias(name, alias))
    return None if version is None else str(version.version)


def training_run_id(size: str, version: str | None) -> str | None:
    """Id of the MLflow run that trained a version. None: it was imported, or `version` is None."""
    return None if version is None else version_tags(size, version).get(TRAINING_RUN_TAG)


def resolve(size: str, alias: str = CANDIDATE) -> RegisteredCheckpoint:
    """Fetch the version that an alias points to, with its checkpoint. FractalError: nothing is
    registered under the alias, or the files are missing."""
    number = aliased_version(size, alias)
    if number is None:
        raise FractalError(
            f"no model models:/{model_name(size)}@{alias} is registered: check the alias, or train "
            f"the size {size} with `fractal train`"
        )
    return fetch(size, number)


def find_version(uri: str) -> NamedVersion:
    """Return the version that `uri`, which is `models:/NAME@ALIAS` or `models:/NAME/VERSION`, names
    now. FractalError: `uri` has another form, there is no such version, or MLflow does not
    answer."""
    client, target = mlflow.MlflowClient(), uri.removeprefix("models:/")
    name, at, alias = target.partition("@")
    if not at:
        name, _, alias = target.partition("/")
    if not name or not alias:
        raise FractalError(
            f"{uri} names no registered version: use models:/NAME/VERSION or models:/NAME@ALIAS"
        )
    request = client.get_model_version_by_alias if at else client.get_model_version
    version = look_up(uri, lambda: request(name, alias))
    if version is None:
        raise FractalError(
            f"the registry {tracking_uri()} has no version {uri}: {_advice(uri, 'first')}"
        )
    return NamedVersion(name, str(version.version), version.tags.get(TRAINING_RUN_TAG))


def _advice(uri: str, when: str) -> str:
    """What to do if the registry does not have `uri`."""
    evaluate = "evaluate a version, which makes it champion; " if uri.endswith("@champion") else ""
    return f"{evaluate}check the name (`fractal models list`), or train or import the model {when}"


def fetch(size: str, version: str) -> RegisteredCheckpoint:
    """Fetch a version with its checkpoint. FractalError: the version or its files are missing."""
    return RegisteredCheckpoint(version, fetch_checkpoint(f"models:/{model_name(size)}/{version}"))


def fetch_checkpoint(uri: str) -> Path:
    """Return the folder of the checkpoint of `uri`, which is `models:/NAME@ALIAS` or
    `models:/NAME/VERSION`. If the store is on another machine, the files are downloaded.
    FractalError: the version is unknown, its files are missing, or the store does not answer."""
    try:
        folder = Path(mlflow.artifacts.download_artifacts(uri))
    except (MlflowException, OSError) as error:
        if not is_absence(error):
            raise FractalError(describe_store_error(error, tracking_uri())) from error
        raise FractalError(
            f"the registry {tracking_uri()} has no files for {uri} "
            f"({one_line(error)}): {_advice(uri, 'again')}"
        ) from error
    places = (folder / "artifacts").glob("*")
    checkpoints = [path for path in places if path.is_dir() and not is_litter(path.name)]
    if len(checkpoints) != 1:
        raise FractalError(
            f"{uri} holds {len(checkpoints)} checkpoints in {folder}, expected 1: train again"
        )
    return checkpoints[0]


def logged_model_id(size: str, version: str | None) -> str | None:
    """Id of the MLflow model behind a registered version; MLflow's tab "Models" shows metrics by
    this id. None if `version` is None, or if an old release of MLflow registered the version."""
    if version is None:
        return None
    source = mlflow.MlflowClient().get_model_version(model_name(size), version).source or ""
    return source.removeprefix("models:/") if source.startswith("models:/m-") else None


def evaluation_tag(protocol_fingerprint: str) -> str:
    """Name of a tag of a version. The tag's value is the id of the run that evaluated the version
    under the protocol with this fingerprint."""
    return f"{EVALUATION_TAG}.{protocol_fingerprint[:12]}"


def find_evaluation(size: str, version: str, protocol_fingerprint: str) -> str | None:
    """Return the id of the finished run that evaluated a version under a protocol; None if there is
    no such run, or if it was deleted. FractalError: MLflow does not answer."""
    run_id = version_tags(size, version).get(evaluation_tag(protocol_fingerprint))
    run = None if run_id is None else find_run(run_id)
    return run_id if run is not None and run.info.status == "FINISHED" else None


def tag_version(size: str, version: str, key: str, value: str) -> None:
    mlflow.MlflowClient().set_model_version_tag(model_name(size), version, key, value)


def version_tags(size: str, version: str) -> dict[str, str]:
    return mlflow.MlflowClient().get_model_version(model_name(size), version).tags
