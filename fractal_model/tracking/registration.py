"""Registering: a checkpoint becomes a version of `fractal-<size>`, or an equal one is found again.

A registered version is a real MLflow model, code and checkpoint together (`served_model.py`).
Its tags say what it came from, so that a run that is unchanged finds it again.
"""

import tempfile
import warnings
from importlib.metadata import version as installed
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema
from pydantic import ValidationError

import fractal_model
from fractal_model.checkpoints.checkpoint import EMA_WEIGHTS, copy_for_sampling
from fractal_model.common.errors import FractalError, one_line
from fractal_model.config.serving import ServingConfig
from fractal_model.tracking import registry
from fractal_model.tracking.descriptions import describe_model, describe_version
from fractal_model.tracking.registry import CANDIDATE, model_name
from fractal_model.tracking.tags import DECISION_TAG, EVALUATION_TAG, FINGERPRINT_TAG

SERVING = "serving"
_SERVING_FILE = f"{SERVING}.json"
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
# Without inputs: by these MLflow would cast and drop what `served_model.py` has to refuse.
_SIGNATURE = ModelSignature(outputs=Schema([ColSpec("binary", "png")]))


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
    registry.set_alias(size, CANDIDATE, number)
    for key, value in tags.items():
        client.set_model_version_tag(model_name(size), number, key, value)
    client.update_registered_model(model_name(size), describe_model(size))
    client.update_model_version(model_name(size), number, describe_version(size, tags))
    return number


def _example(serving: ServingConfig) -> pd.DataFrame:
    """Two images of the first class, as they are served."""
    settings = serving.sampling
    own = {"guidance": settings.guidance, "logit_scale": settings.logit_scale}
    return pd.DataFrame({"class": 0, "seed": [0, 1], **own})


def read_serving(size: str, version: str) -> ServingConfig:
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


def reuse(size: str, fingerprint: str, serving: ServingConfig) -> str | None:
    """The newest version that an equal run has registered, made the candidate; None where there is
    none. Where none of them serves in this way, the newest is registered once more, so that what
    is evaluated under changed settings can be served under them."""
    known = registry.versions(size) if size in registry.sizes() else []
    equal = [version for version in known if version.tags.get(FINGERPRINT_TAG) == fingerprint]
    for version in equal:
        if _serves(size, version.version, serving):
            registry.set_alias(size, CANDIDATE, str(version.version))
            return str(version.version)
    return _register_again(size, equal[0], serving) if equal else None


def serving_difference(size: str, version: str, evaluated: ServingConfig) -> str:
    """Why a version that was evaluated in this way is not the one that would be served, and the
    way out; "" where it is."""
    differences = read_serving(size, version).differences(evaluated)
    reason = (
        f"version {version} serves with {differences} as evaluated: train or import {size} again, "
        f"which registers the same weights once more with the settings of params.yaml"
    )
    return reason if differences else ""


def _serves(size: str, version: str, serving: ServingConfig) -> bool:
    try:
        return read_serving(size, version) == serving
    except FractalError:  # registered by an earlier version of this package
        return False


def _register_again(size: str, version: ModelVersion, serving: ServingConfig) -> str:
    checkpoint = registry.fetch_checkpoint(f"models:/{model_name(size)}/{version.version}")
    own = (EVALUATION_TAG, DECISION_TAG)  # what holds for that version alone
    tags = {key: value for key, value in version.tags.items() if not key.startswith(own)}
    with mlflow.start_run(version.run_id):
        return register(size, checkpoint, serving=serving, tags=tags)
