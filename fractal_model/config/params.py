"""`params.yaml`: read once, into frozen models; DVC stages, flows and commands use the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError, model_validator

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.strict import StrictModel
from fractal_model.common.validation import describe
from fractal_model.config.data import PreparationConfig
from fractal_model.config.evaluation import (
    EvaluationConfig,
    NightlyConfig,
    PromotionConfig,
    SweepConfig,
)
from fractal_model.config.model import ModelConfig
from fractal_model.config.presets import Architecture
from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.services import ServicesConfig
from fractal_model.config.serving import ServingConfig
from fractal_model.config.training import TrainingConfig

DEFAULT_FILE = Path("params.yaml")


SizeName = Annotated[str, Field(pattern="^[a-z0-9-]+$")]
"""Part of the names of experiments, artifacts and folders."""


class PathsConfig(StrictModel):
    """Folders; absolute once read."""

    data: Path
    outputs: Path
    remote: Annotated[dict[str, str], Field(default_factory=dict)]
    """Data sets read straight from an object store, such as s3://bucket/imagenet64, by name."""
    training: str | None = None
    """Where training runs keep their checkpoints: a folder that all machines see, or an address
    such as s3://bucket/training; by default in `outputs`."""


class DigitsConfig(StrictModel):
    """The embedded data set."""

    validation_images: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0)]


class MetricsConfig(StrictModel):
    """Networks that metrics are computed with."""

    statistics_images: dict[str, Annotated[int, Field(ge=4)]]
    """Training images whose Inception features give the reference's mean and covariance, by data
    set; all of them for one that is not named."""
    feature_sample: Annotated[int, Field(ge=4)]
    """Of these, how many features are kept for KID, precision and recall."""
    inception_weights: str
    """`auto` (what is installed), `download`, or the path of torch-fidelity's weights, relative to
    the settings file; only those have the classifier that the Inception Score needs."""
    dinov2_weights: str | None = None
    """The path of timm's weights of a DINOv2 network, relative to the settings file; without them
    there is no FD-DINOv2."""


class DatasetsConfig(StrictModel):
    digits: DigitsConfig


class Size(StrictModel):
    """All settings of one model size."""

    name: str
    model: ModelConfig
    training: TrainingConfig
    sampling: SamplingConfig
    evaluation: EvaluationConfig

    @property
    def serving(self) -> ServingConfig:
        """What is evaluated is what is served."""
        return ServingConfig(weights=self.evaluation.weights, sampling=self.sampling)

    def with_workers(self, workers: int | None) -> Size:
        """The same size, evaluated by this number of workers; None changes nothing."""
        if workers is None:
            return self
        evaluation = self.evaluation.model_copy(update={"workers": workers})
        return self.model_copy(update={"evaluation": evaluation})

    def with_class_names(self, names: tuple[str, ...]) -> Size:
        """The same, its model knowing what its `num_classes` classes are called."""
        model = self.model.model_copy(update={"class_names": names})
        return self.model_copy(update={"model": model})


class Params(StrictModel):
    """The whole file."""

    paths: PathsConfig
    datasets: DatasetsConfig
    preparation: PreparationConfig
    metrics: MetricsConfig
    promotion: Annotated[PromotionConfig, Field(default_factory=PromotionConfig)]
    services: Annotated[ServicesConfig, Field(default_factory=ServicesConfig)]
    models: dict[SizeName, Architecture]
    training: dict[str, TrainingConfig]
    sampling: dict[str, SamplingConfig]
    evaluation: dict[str, EvaluationConfig]
    nightly: Annotated[NightlyConfig, Field(default_factory=NightlyConfig)]
    sweep: Annotated[dict[str, SweepConfig], Field(default_factory=dict)]
    """By size; one that is not named has the defaults."""

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        for section in ("training", "sampling", "evaluation"):
            found = set(getattr(self, section))
            if found != set(self.models):
                raise ValueError(
                    f"{section} has the sizes {sorted(found)}, models has {sorted(self.models)}: "
                    f"every size needs an entry in each"
                )
        for name in self.models:
            if self.evaluation[name].weights == "ema" and not self.training[name].ema_decay:
                raise ValueError(
                    f"evaluation.{name}.weights is ema, but training.{name}.ema_decay 0 keeps no "
                    f"moving average: set ema_decay above 0, as 0.999, or weights to model"
                )
            model = self.models[name].to_model()
            self.sampling[name].level_iterations(model)
            self.training[name].checkpointed(len(model.levels))
        return self

    @model_validator(mode="after")
    def _sweeps_fit(self) -> Params:
        for name, sweep in self.sweep.items():
            if name not in self.models:
                raise ValueError(
                    f"sweep has the size {name!r}, models has {sorted(self.models)}: match them"
                )
            model = self.models[name].to_model()
            for setting in sweep.settings(self.sampling[name]):
                setting.level_iterations(model)
        return self

    def size(self, name: str) -> Size:
        """Everything about one size. FractalError names the sizes there are."""
        if name not in self.models:
            raise FractalError(f"size {name!r} is unknown: choose {' or '.join(self.models)}")
        return Size(
            name=name,
            model=self.models[name].to_model(),
            training=self.training[name],
            sampling=self.sampling[name],
            evaluation=self.evaluation[name],
        )

    def size_of(self, model: ModelConfig) -> Size:
        """The size that a model is of, by its layers. FractalError: none, or several."""
        sizes = [
            name for name in self.models if _layers(self.models[name].to_model()) == _layers(model)
        ]
        if len(sizes) != 1:
            found = " and of ".join(sizes) or "no size in params.yaml"
            raise FractalError(
                f"the model has the layers of {found}: "
                f"say with --size whose settings to take, {' or '.join(self.models)}"
            )
        return self.size(sizes[0])

    def evaluation_of(self, dataset: str, size: str | None) -> EvaluationConfig:
        """How samples are compared with a data set: as a size does, or as all sizes that are
        trained on it do. FractalError: none is, or they differ."""
        if size is not None:
            return self.size(size).evaluation
        sizes = [name for name in self.models if self.training[name].dataset == dataset]
        different = {self.evaluation[name] for name in sizes}
        if len(different) != 1:
            found = f"{len(different)} different ways" if sizes else "no size"
            raise FractalError(
                f"params.yaml has {found} to evaluate on {dataset}: say with --size whose settings "
                f"to take, {' or '.join(sizes or self.models)}"
            )
        return different.pop()

    def dataset_folder(self, name: str) -> Path | str:
        """Where the prepared data set is: a folder, or an address in an object store."""
        return self.paths.remote.get(name, self.paths.data / name)

    def reference_file(self, dataset: str) -> Path:
        """The Inception features of the data set's training images."""
        return self.paths.data / f"{dataset}-reference.npz"

    def dinov2_reference_file(self, dataset: str) -> Path:
        """The same images' DINOv2 features, where there are weights."""
        return self.paths.data / f"{dataset}-reference-dinov2.npz"


def _place(base: Path, given: str | None) -> str | None:
    """A folder, absolute; an address as it is."""
    return given if given is None or "://" in given else str((base / given).resolve())


def _layers(model: ModelConfig) -> tuple[object, ...]:
    """What makes a model of one size: all but dropout, classes and loss weights."""
    return (model.pixel, *(level.model_copy(update={"dropout": 0.0}) for level in model.levels))


def load_params(file: Path = DEFAULT_FILE) -> Params:
    """Read and check the file. FractalError: one line with the key, what was found, what is
    allowed."""
    try:
        content = yaml.safe_load(file.read_text())
    except FileNotFoundError as error:
        raise FractalError(
            f"{file} is missing in {Path.cwd()}: run from the project's folder or give --params"
        ) from error
    except OSError as error:
        raise FractalError(f"{file} cannot be read ({error.strerror}): give a file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FractalError(f"{file} is not valid YAML: {one_line(error)}") from error
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        raise FractalError(f"{file}: {describe(error, Params)}") from error
    base = file.resolve().parent
    paths = params.paths.model_copy(
        update={
            "data": (base / params.paths.data).resolve(),
            "outputs": (base / params.paths.outputs).resolve(),
            "training": _place(base, params.paths.training),
        }
    )
    weights = params.metrics.inception_weights
    if weights not in ("auto", "download"):
        weights = str(base / weights)
    dinov2 = _place(base, params.metrics.dinov2_weights)
    metrics = params.metrics.model_copy(
        update={"inception_weights": weights, "dinov2_weights": dinov2}
    )
    return params.model_copy(update={"paths": paths, "metrics": metrics})
