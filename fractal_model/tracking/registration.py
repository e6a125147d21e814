"""Registers a checkpoint as a version of `fractal-<size>`, or reuses a version.

A registered version is an MLflow model with its code and checkpoint (`served_model.py`). Its tags
hold the id of the run that made it, and the fingerprint of the training's settings and data. A
later training with the same fingerprint reuses the version.
"""

import tempfile
import warnings
from importlib.metadata import version as installed
from pathlib import Path
from typing import NamedTuple

import mlflow
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema
from pydantic import ValidationError

import fractal_model
from fractal_model.checkpoints.checkpoint import copy_for_sampling, require_weights
from fractal_model.common.errors import FractalError, one_line
from fractal_model.config.serving import ServingConfig
from fractal_model.tracking import registry
from fractal_model.tracking.descriptions import describe_model, describe_version
from fractal_model.tracking.registry import CANDIDATE, model_name
from fractal_model.tracking.tags import DECISION_TAG, EVALUATION_TAG, FINGERPRINT_TAG

SERVING = "serving"
_SERVING_FILE = f"{SERVING}.json"
# Packages that a server installs, in the versions that are installed here
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
# The signature has no inputs. With inputs, MLflow would cast values that `served_model.py` refuses,
# and drop columns that the signature does not have.
_SIGNATURE = ModelSignature(outputs=Schema([ColSpec("binary", "png")]))


class _PyfuncWithoutTrial:
    """MLflow's pyfunc flavour without the trial prediction when a model is logged: the trial would
    sample images, which takes hours for a large model without a GPU."""

    __name__ = "pyfunc"

    @staticmethod
    def save_model(path: str, *, validate_serving_input: bool, **settings: object) -> None:
        mlflow.pyfunc.save_model(path, **settings)


def register(size: str, checkpoint: Path, *, serving: ServingConfig, tags: dict[str, str]) -> str:
    """Log the checkpoint as a model of the active run, register it with `tags`, and point the alias
    `candidate` to the new version; return the version's number. FractalError: the checkpoint is
    damaged, or lacks the weights that `serving` asks for, or `serving` has a guide."""
    serving.require_no_guide()
    try:
        require_weights(checkpoint, serving.weights)
    except FractalError as error:
        raise FractalError(
            f"{checkpoint} is not registered with evaluation.{size}.weights {serving.weights}: "
            f"{error}"
        ) from error
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        files = {"checkpoint": Path(scratch) / "checkpoint", SERVING: Path(scratch) / _SERVING_FILE}
        copy_for_sampling(checkpoint, files["checkpoint"])
        files[SERVING].write_text(serving.model_dump_json(indent=1))
        # MLflow advises type hints, which cannot express this signature.
        warnings.filterwarnings("ignore", message=".*Add type hints.*")
        logged = Model.log(
            artifact_path=None,  # The old parameter for the name has no default.
            name=_logged_name(size, tags),
            flavor=_PyfuncWithoutTrial,
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={name: str(file) for name, file in files.items()},
            code_paths=[str(Path(fractal_model.__file__).parent)],
            pip_requirements=[f"{name}=={installed(name)}" for name in SERVED_PACKAGES],
            signature=_SIGNATURE,
            input_example=_example(serving),
            validate_serving_input=False,
            registered_model_name=model_name(size),
        )
    client, number = mlflow.MlflowClient(), str(logged.registered_model_version)
    # The alias comes first, so that a run that finds this version by its tags finds the candidate.
    registry.set_alias(size, CANDIDATE, number)
    for key, value in tags.items():
        registry.tag_version(size, number, key, value)
    client.update_registered_model(model_name(size), describe_model(size))
    run = mlflow.get_run(logged.run_id)
    client.update_model_version(model_name(size), number, describe_version(size, tags, run))
    return number


def _logged_name(size: str, tags: dict[str, str]) -> str:
    """Name of a version on MLflow's tab "Models": its size and, if it was trained, the beginning of
    the training's fingerprint, which is also in the name of the training's run."""
    fingerprint = tags.get(FINGERPRINT_TAG, "")[:8]
    return f"{size}-{fingerprint}" if fingerprint else size


def _example(serving: ServingConfig) -> pd.DataFrame:
    settings = serving.sampling.model_dump(include={"guidance", "logit_scale"})
    return pd.DataFrame({"class": 0, "seed": [0, 1], **settings})


def read_serving(size: str, version: str) -> ServingConfig:
    """Read the settings with which a version is served. FractalError: its files are missing, or
    another version of this package wrote them."""
    name = f"{model_name(size)}/{version}"
    try:
        text = mlflow.artifacts.load_text(f"models:/{name}/artifacts/{_SERVING_FILE}")
        return ServingConfig.model_validate_json(text)
    except (MlflowException, OSError, ValidationError) as error:
        raise FractalError(
            f"the registry {mlflow.get_tracking_uri()} has no valid serving settings for "
            f"models:/{name} ({one_line(error)}): train or import the model again"
        ) from error


class Candidate(NamedTuple):
    """A version with weights that an earlier run made."""

    version: str
    is_new: bool
    """True if the weights are registered again, because their version serves other settings."""


def reuse(size: str, fingerprint: str, serving: ServingConfig) -> Candidate | None:
    """Find the newest version with this fingerprint and these serving settings, and make it the
    candidate. If all versions with the fingerprint have other serving settings, register the newest
    one's weights again with `serving`, because evaluation uses `serving`. Return None if no version
    has the fingerprint."""
    all_versions = registry.versions(size) if size in registry.sizes() else []
    equal = [v for v in all_versions if v.tags.get(FINGERPRINT_TAG) == fingerprint]
    for version in equal:
        if _serves_with(size, version.version, serving):
            registry.set_alias(size, CANDIDATE, str(version.version))
            return Candidate(str(version.version), is_new=False)
    return Candidate(_register_again(size, equal[0], serving), is_new=True) if equal else None


def serving_difference(size: str, version: str, evaluated: ServingConfig) -> str:
    """Describe how a version's serving settings differ from the `evaluated` settings, and what the
    user can do; "" if they are equal."""
    differences = read_serving(size, version).differences(evaluated)
    if not differences:
        return ""
    return (
        f"version {version} serves with {differences}, unlike its evaluation: train or import "
        f"{size} again, which registers the same weights with the settings of params.yaml"
    )


def ranked_model_id(size: str, version: str | None, evaluated: ServingConfig) -> str | None:
    """Id of the MLflow model to which an evaluation with the settings `evaluated` adds its metrics;
    searches order models by them. None: the version serves with other settings (a sweep evaluates
    such settings), `version` is None, or an old release of MLflow registered the version."""
    is_served_so = version is not None and _serves_with(size, version, evaluated)
    return registry.logged_model_id(size, version) if is_served_so else None


def _serves_with(size: str, version: str, serving: ServingConfig) -> bool:
    try:
        return read_serving(size, version) == serving
    except FractalError:  # An earlier version of this package stored other settings.
        return False


def _register_again(size: str, version: ModelVersion, serving: ServingConfig) -> str:
    checkpoint = registry.fetch_checkpoint(f"models:/{model_name(size)}/{version.version}")
    version_only = (EVALUATION_TAG, DECISION_TAG)
    tags = {key: value for key, value in version.tags.items() if not key.startswith(version_only)}
    with mlflow.start_run(version.run_id):
        return register(size, checkpoint, serving=serving, tags=tags)
