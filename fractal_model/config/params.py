"""Read params.yaml into frozen objects, which DVC stages, flows and commands share."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.strict import LARGEST_SEED, NUMBER, Seed, StrictModel
from fractal_model.common.strict_yaml import NotYAMLError, read_yaml
from fractal_model.common.validation import describe, name_nearest
from fractal_model.config.architecture import Architecture
from fractal_model.config.data import PreparationConfig
from fractal_model.config.ddo import DDOConfig
from fractal_model.config.evaluation import (
    EvaluationConfig,
    NightlyConfig,
    PromotionConfig,
    SweepConfig,
)
from fractal_model.config.metrics import MetricsConfig
from fractal_model.config.model import ModelConfig
from fractal_model.config.overrides import Override, apply_overrides, parse_override
from fractal_model.config.paths import PathsConfig
from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.services import ServicesConfig
from fractal_model.config.serving import ServingConfig
from fractal_model.config.training import TrainingConfig
from fractal_model.config.weights import MODEL, choose_average

DEFAULT_FILE = Path(os.environ.get("FRACTAL_PARAMS") or "params.yaml")
"""The settings file, unless an option or a parameter names another one."""

SizeName = Annotated[str, Field(pattern="^[a-z0-9-]+$", max_length=100)]
"""Name of a size, which is part of the names of experiments, artifacts and folders."""


class PipelineConfig(StrictModel):
    """What `dvc repro` does beside preparing data sets."""

    sizes: Annotated[dict[SizeName, str], Field(default_factory=dict)]
    """Sizes to train and evaluate, each with the data set of its recipe, which a stage of DVC
    cannot look up by itself."""


class DigitsConfig(StrictModel):
    """Settings of the data set `digits`, which comes with scikit-learn."""

    validation_images: Annotated[int, Field(ge=1, le=2**31), NUMBER]
    """Number of images that are held out for validation."""
    seed: Seed
    """Seed that chooses the validation images."""


class DatasetsConfig(StrictModel):
    """The data sets that come with the package."""

    digits: DigitsConfig
    """The handwritten digits of scikit-learn."""


class Size(StrictModel):
    """All settings of one size."""

    name: str
    model: ModelConfig
    training: TrainingConfig
    sampling: SamplingConfig
    evaluation: EvaluationConfig

    @property
    def serving(self) -> ServingConfig:
        """The weights and sampling settings with which this size is both evaluated and served."""
        return ServingConfig(weights=self.evaluation.weights, sampling=self.sampling)

    def with_workers(self, workers: int | None) -> Self:
        """This size with `workers` workers for its evaluation; None changes nothing."""
        if workers is None:
            return self
        evaluation = self.evaluation.model_copy(update={"workers": workers})
        return self.model_copy(update={"evaluation": evaluation})

    def with_class_names(self, names: tuple[str, ...]) -> Self:
        """This size with `names` as the class names of its model, one for each of its
        `num_classes`."""
        model = self.model.model_copy(update={"class_names": names})
        return self.model_copy(update={"model": model})


class Params(StrictModel):
    """All settings of params.yaml."""

    paths: PathsConfig
    """Folders of data and results."""
    pipeline: Annotated[PipelineConfig, Field(default_factory=PipelineConfig)]
    """Sizes that `dvc repro` trains and evaluates."""
    datasets: DatasetsConfig
    """Data sets that come with the package."""
    preparation: PreparationConfig
    """Preparation of registered images."""
    metrics: MetricsConfig
    """Real images and feature networks of the sample metrics."""
    promotion: Annotated[PromotionConfig, Field(default_factory=PromotionConfig)]
    """Rule by which a candidate becomes champion."""
    services: Annotated[ServicesConfig, Field(default_factory=ServicesConfig)]
    """Servers that `make up` starts on 127.0.0.1."""
    models: dict[SizeName, Architecture]
    """Architecture of each size, by its name."""
    training: dict[str, TrainingConfig]
    """Recipe and resources of each size."""
    sampling: dict[str, SamplingConfig]
    """Sampling settings of each size."""
    evaluation: dict[str, EvaluationConfig]
    """Evaluation settings of each size."""
    nightly: Annotated[NightlyConfig, Field(default_factory=NightlyConfig)]
    """Schedule of the nightly evaluation."""
    sweep: Annotated[dict[str, SweepConfig], Field(default_factory=dict)]
    """Sweep settings by name of the size. A size without an entry has the defaults."""
    ddo: Annotated[dict[str, DDOConfig], Field(default_factory=dict)]
    """Settings of `fractal tune-ddo` by name of the size. A size without an entry has the
    defaults."""

    @model_validator(mode="after")
    def _require_consistency(self) -> Self:
        for section in ("training", "sampling", "evaluation"):
            sizes = set(getattr(self, section))
            if sizes != set(self.models):
                raise ValueError(
                    f"{section} has the sizes {sorted(sizes)}, models has {sorted(self.models)}: "
                    f"every size needs an entry in each"
                )
        for name in self.models:
            self._require_average(name, "evaluation", self.evaluation[name].weights)
            model, evaluation = self.models[name].to_model(), self.evaluation[name]
            last_seed = evaluation.seed + evaluation.samples_per_class * model.num_classes - 1
            if last_seed > LARGEST_SEED:
                raise ValueError(
                    f"the seeds of evaluation.{name} count up to {last_seed}, which is above "
                    f"{LARGEST_SEED}: lower its seed or samples_per_class"
                )
            self.sampling[name].level_iterations(model)
            self.training[name].checkpointing_by_level(len(model.levels))
            self._require_masks(name, model)
        self._require_pipeline_sizes()
        for section in ("sweep", "ddo"):
            for name in getattr(self, section).keys() - self.models.keys():
                raise ValueError(
                    f"{section} has the size {name!r}: remove it, or name one of "
                    f"{sorted(self.models)}"
                )
        for name, sweep in self.sweep.items():
            for weights in sweep.weights:
                self._require_average(name, "sweep", weights)
            size = self.size(name)
            for setting in sweep.settings(size.serving):
                setting.sampling.level_iterations(size.model)
        return self

    def _require_masks(self, name: str, model: ModelConfig) -> None:
        """Check that a size whose recipe chooses a mask ratio has a level with masks."""
        ratio = self.training[name].mask_ratio
        if ratio != "published" and model.is_autoregressive:
            raise ValueError(
                f"training.{name}.mask_ratio is {ratio}, but models.{name}.generators are all ar, "
                f"which have no masks: remove mask_ratio, or choose mar for a level"
            )

    def _require_pipeline_sizes(self) -> None:
        for name, dataset in self.pipeline.sizes.items():
            if name not in self.models:
                raise ValueError(
                    f"pipeline.sizes has the size {name!r}: remove it, or name one of "
                    f"{sorted(self.models)}"
                )
            if dataset != self.training[name].dataset:
                raise ValueError(
                    f"pipeline.sizes.{name} is {dataset!r}, but training.{name}.dataset is "
                    f"{self.training[name].dataset!r}: name the same data set in both"
                )

    def _require_average(self, size: str, section: str, weights: str) -> None:
        """Check that the training of a size keeps the moving average that its `section` names."""
        if weights == MODEL:
            return
        try:
            choose_average(weights, self.training[size].averages)
        except ValueError as error:
            raise ValueError(
                f"{section}.{size}.weights is {weights}, but with training.{size}.ema_decays "
                f"{list(self.training[size].ema_decays)} {error}; weights can be {MODEL} too, and "
                f"ema_decays another list, such as [0.999]"
            ) from error

    def size(self, name: str) -> Size:
        """All settings of one size. FractalError: there is no such size."""
        if name not in self.models:
            raise FractalError(f"size {name!r} is unknown{name_nearest(name, self.models)}")
        return Size(
            name=name,
            model=self.models[name].to_model(),
            training=self.training[name],
            sampling=self.sampling[name],
            evaluation=self.evaluation[name],
        )

    def with_weights(self, size: str, weights: str | None) -> Self:
        """These settings with `weights` as those that are evaluated of a size; None changes
        nothing. FractalError: there is no such size."""
        if weights is None:
            return self
        settings = self.size(size).evaluation.model_copy(update={"weights": weights})
        return self.model_copy(update={"evaluation": {**self.evaluation, size: settings}})

    def find_size(self, model: ModelConfig) -> Size:
        """Return the first size with the same layers as `model`. FractalError: no size fits, or
        several that differ in data set, sampling or evaluation."""
        layers = _layers(model)
        sizes = [name for name, row in self.models.items() if _layers(row.to_model()) == layers]
        uses = {(self.training[n].dataset, self.sampling[n], self.evaluation[n]) for n in sizes}
        if len(uses) != 1:
            reason = "no size in params.yaml has the layers of this model"
            if sizes:
                reason = f"sizes {' and '.join(sizes)} have the layers of this model, but differ"
            raise FractalError(
                f"{reason}: choose the size whose settings to use, "
                f"{' or '.join(sizes or self.models)}",
                setting="size",
            )
        return self.size(sizes[0])

    def find_evaluation(self, dataset: str, size: str | None) -> EvaluationConfig:
        """Return the evaluation settings of `size`. If it is None, return those of the first size
        of `dataset`. FractalError: no size trains on `dataset`, or its sizes differ in what matters
        for images from files: their number, and how often statistics are computed."""
        if size is not None:
            return self.size(size).evaluation
        sizes = [name for name in self.models if self.training[name].dataset == dataset]
        of_model = {"weights", "likelihood_passes", "batch_size", "workers", "seed"}
        different = {self.evaluation[name].model_dump_json(exclude=of_model) for name in sizes}
        if len(different) != 1:
            ways = f"{len(different)} different ways" if sizes else "no size"
            raise FractalError(
                f"params.yaml has {ways} to evaluate on {dataset}: choose the size whose settings "
                f"to use, {' or '.join(sizes or self.models)}",
                setting="size",
            )
        return self.evaluation[sizes[0]]

    def dataset_folder(self, name: str) -> Path | str:
        """Folder of the prepared data set `name`, or its address in an object store."""
        return self.paths.remote.get(name, self.paths.data / name)

    def reference_file(self, dataset: str) -> Path:
        """File with the Inception features of the data set's training images."""
        return self.paths.data / f"{dataset}-reference.npz"

    def dinov2_reference_file(self, dataset: str) -> Path:
        """File with the DINOv2 features of the data set's training images."""
        return self.paths.data / f"{dataset}-reference-dinov2.npz"


def _absolute(base: Path, place: str | None) -> str | None:
    """The absolute path of a file or folder that is relative to `base`. An address (s3://…,
    models:/…) or None is returned unchanged."""
    if place is None or ":/" in place:
        return place
    return str((base / Path(place).expanduser()).resolve())


def _layers(model: ModelConfig) -> tuple[object, ...]:
    """The settings that decide a model's layers: all but dropout, classes and loss weights."""
    return (model.pixel, *(level.model_copy(update={"dropout": 0.0}) for level in model.levels))


def load_params(file: Path = DEFAULT_FILE, overrides: Sequence[str] | None = None) -> Params:
    """Read and check the settings in `file`, with the values that `overrides` set, and make their
    paths absolute. An override is a text such as `training.digits.epochs=5`.

    FractalError: the file cannot be read, or a setting is wrong; the message names the wrong
    settings."""
    content = _read_file(file)
    changes = [parse_override(text) for text in overrides or ()]
    try:
        return _make_params(content, changes, file)
    except FractalError as error:
        culprits = _find_culprits(content, changes, file)
        if not culprits:
            raise FractalError(f"{file}: {error}") from error
        raise FractalError(f"{', '.join(map(str, culprits))}: {error}", setting="set") from error


def _read_file(file: Path) -> Any:
    try:
        return read_yaml(file)
    except FileNotFoundError as error:
        raise FractalError(
            f"{file} is missing in {Path.cwd()}: run from the project's folder or give a file",
            setting="params",
        ) from error
    except OSError as error:
        raise FractalError(f"{file} cannot be read ({error.strerror}): give a YAML file") from error
    except NotYAMLError as error:
        raise FractalError(f"{file}: {error}") from error


def _find_culprits(content: Any, changes: Sequence[Override], file: Path) -> Sequence[Override]:
    """Return the changes that make the settings wrong: the one without which they are right, or all
    changes. The file's own content is wrong if there is none."""

    def are_right(others: Sequence[Override]) -> bool:
        try:
            _make_params(content, others, file)
        except FractalError:
            return False
        return True

    if not changes or not are_right(()):
        return ()
    alone = [c for c in changes if are_right([other for other in changes if other is not c])]
    return alone[:1] or changes


def _make_params(content: Any, changes: Sequence[Override], file: Path) -> Params:
    try:
        params = Params.model_validate(apply_overrides(content, changes, Params))
        return _with_absolute_paths(params, file.resolve().parent)
    except ValidationError as error:
        raise FractalError(describe(error, Params)) from error
    except FractalError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # too long, circular link, no home
        raise FractalError(f"a path cannot be used ({one_line(error)}): fix it") from error


def _with_absolute_paths(params: Params, base: Path) -> Params:
    paths, metrics = params.paths, params.metrics
    places = {
        "data": (base / paths.data.expanduser()).resolve(),
        "outputs": (base / paths.outputs.expanduser()).resolve(),
        "training": _absolute(base, paths.training),
    }
    weights = {"dinov2_weights": _absolute(base, metrics.dinov2_weights)}
    if metrics.inception_weights not in ("auto", "download"):
        weights["inception_weights"] = str(base / Path(metrics.inception_weights).expanduser())
    paths, metrics = paths.model_copy(update=places), metrics.model_copy(update=weights)
    training = {
        name: recipe.model_copy(update={"start_from": _absolute(base, recipe.start_from)})
        for name, recipe in params.training.items()
    }
    sampling = {
        name: settings.model_copy(update={"guide": _absolute(base, settings.guide)})
        for name, settings in params.sampling.items()
    }
    sections = {"paths": paths, "metrics": metrics, "training": training, "sampling": sampling}
    return params.model_copy(update=sections)
