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
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema

import fractal_model
from fractal_model.errors import FractalError, one_line
from fractal_model.sampling.settings import SamplingConfig
from fractal_model.tracking.descriptions import describe_model, describe_version

CANDIDATE, CHAMPION = "candidate", "champion"
FINGERPRINT_TAG = "fractal.fingerprint"
TRAINING_RUN_TAG = "fractal.training_run"
EVALUATION_TAG = "fractal.evaluation"
"""Tag of a version, `<this>.<protocol>`: the run that evaluated it under that protocol."""
_NOTHING_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
SERVED_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "safetensors",
    "huggingface_hub",
    "httpx",
    "pydantic",
    "numpy",
    "pandas",
    "pillow",
)
_SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec("long", "class"),
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


def register(size: str, checkpoint: Path, *, sampling: SamplingConfig, tags: dict[str, str]) -> str:
    """Log the checkpoint as a model of the active run, register it, point `candidate` to it.

    `sampling` is how the served model samples where a request does not say.
    """
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        settings = Path(scratch) / "sampling.json"
        settings.write_text(sampling.model_dump_json(indent=1))
        # MLflow advises type hints, which cannot say what the signature says.
        warnings.filterwarnings("ignore", message=".*Add type hints.*")
        # No input example, which MLflow advises too: it would load the model and sample with it,
        # hours for a large one on a CPU.
        warnings.filterwarnings("ignore", message=".*An input example was not provided.*")
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={"checkpoint": str(checkpoint), "sampling": str(settings)},
            code_paths=[str(Path(fractal_model.__file__).parent)],
            pip_requirements=[f"{name}=={installed(name)}" for name in SERVED_PACKAGES],
            signature=_SIGNATURE,
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


def nominate(size: str, version: str) -> None:
    """Point `candidate` to a version."""
    mlflow.MlflowClient().set_registered_model_alias(model_name(size), CANDIDATE, version)


def find_version(size: str, fingerprint: str) -> str | None:
    """The newest version that an equal run has registered."""
    client = mlflow.MlflowClient()
    found = client.search_model_versions(f"name = '{model_name(size)}'")
    numbers = [int(v.version) for v in found if v.tags.get(FINGERPRINT_TAG) == fingerprint]
    return str(max(numbers)) if numbers else None


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
    version = aliased_version(size, CHAMPION)
    return None if version is None else version_tags(size, version).get(TRAINING_RUN_TAG)


def resolve(size: str, alias: str = CANDIDATE) -> RegisteredCheckpoint:
    """Fetch a version's checkpoint. FractalError: nothing is registered under the alias."""
    number = aliased_version(size, alias)
    if number is None:
        raise FractalError(
            f"no model models:/{model_name(size)}@{alias} is registered: train one with "
            f"`python -m flows.train --size {size}`"
        )
    checkpoint = fetch_checkpoint(f"models:/{model_name(size)}/{number}")
    return RegisteredCheckpoint(number, checkpoint, version_tags(size, number))


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
    mlflow.MlflowClient().set_registered_model_alias(model_name(size), CHAMPION, version)


def tag_version(size: str, version: str, key: str, value: str) -> None:
    mlflow.MlflowClient().set_model_version_tag(model_name(size), version, key, value)


def version_tags(size: str, version: str) -> dict[str, str]:
    return mlflow.MlflowClient().get_model_version(model_name(size), version).tags
