"""The file of a study: variants of a recipe, seeds, metrics, and the images to measure on.

Decided here: a study tunes on a part of the training images. Its file says `held_out: validation`
only if a last choice is to be confirmed.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from fractal_model.common.errors import FractalError
from fractal_model.common.strict import NUMBER, NotEmpty, Seed, StrictModel
from fractal_model.common.strict_yaml import NotYAMLError, read_yaml
from fractal_model.common.validation import describe
from fractal_model.config.params import SizeName
from fractal_model.config.weights import Weights
from fractal_model.metrics.names import CONDITIONAL_NLL, NLL, SAMPLE_METRICS, SPEED

FOLDER = Path("docs/studies")
"""Folder of the studies of a project, beside params.yaml."""
BASE = "base"
"""Name of the variant with which the others are compared: the settings `set` alone."""
METRICS = (NLL, CONDITIONAL_NLL, *SAMPLE_METRICS, *SPEED)
LEAST_SEEDS = 3

VariantName = Annotated[str, Field(pattern=r"^[\w.-]+$", max_length=60)]
Settings = tuple[NotEmpty, ...]
"""Texts such as `training.digits.epochs=5`."""
_HeldOutShare = Annotated[float, Field(gt=0, le=0.5, allow_inf_nan=False), NUMBER]


class Study(StrictModel):
    """The contents of the file of a study."""

    question: NotEmpty
    """What the study is to find out, in one sentence."""
    size: SizeName
    set: Settings = ()
    """Settings that all variants share and that differ from params.yaml."""
    variants: Annotated[dict[VariantName, Settings], Field(default_factory=dict)]
    """Settings of each variant, which apply after `set`. The variant `base` has none."""
    other_images: tuple[VariantName, ...] = ()
    """Variants that may see another number of images than the base, such as longer trainings."""
    guides: Annotated[dict[VariantName, VariantName], Field(default_factory=dict)]
    """Variants whose samples a weaker model guides, each with the variant that trains this model
    with the same seed."""
    tuned: Annotated[dict[VariantName, Weights], Field(default_factory=dict)]
    """Variants that are fine-tuned with their own samples after the training, as `fractal tune-ddo`
    does with the settings `ddo.SIZE`, each with the weights that this starts from. The images and
    minutes of a trial are without it."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=LEAST_SEEDS, max_length=100)]
    """Seeds of the trainings of each variant. Differences are paired by seed."""
    metrics: Annotated[tuple[Literal[METRICS], ...], Field(min_length=1)] = (NLL,)  # type: ignore[valid-type]
    """Metrics to compare. Those of samples are measured by the evaluation protocol of the size."""
    held_out: Literal["validation"] | _HeldOutShare = 0.1
    """Images that likelihoods are measured on: a share of the training images, which training
    leaves out, or the validation images."""

    @model_validator(mode="after")
    def _require_consistency(self) -> Self:
        if BASE in self.variants:
            raise ValueError(f"variants has {BASE!r}: give its settings under set")
        for name in ("other_images", "guides", "tuned"):
            if unknown := set(getattr(self, name)) - set(self.variants):
                raise ValueError(f"{name} names {min(unknown)!r}, which is no variant")
        if unknown := set(self.guides.values()) - {BASE, *self.variants}:
            raise ValueError(f"guides names {min(unknown)!r}, which is no variant")
        if guided := set(self.guides.values()) & {*self.guides, *self.tuned}:
            raise ValueError(
                f"guides names {min(guided)!r} as a guide, which is guided or tuned itself: choose "
                f"a variant that is only trained"
            )
        if self.guides and not {*self.metrics} - {NLL, CONDITIONAL_NLL}:
            raise ValueError(
                "guides change samples alone, but no metric is one of samples: add fid"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed occurs twice: name each one once")
        return self

    @property
    def recipes(self) -> dict[str, Settings]:
        """All settings of each variant, the base first."""
        share = 0 if self.held_out == "validation" else self.held_out
        holdout = f"training.{self.size}.holdout={share}"
        variants = {BASE: (), **self.variants}
        return {name: (*self.set, *own, holdout) for name, own in variants.items()}


def find_study(name: str, project: Path) -> Path:
    """Return the file of a study: `name` itself if it is the path of a YAML file, else the file of
    this name in the folder `project`. FractalError: there is no such file."""
    is_path = Path(name).suffix in (".yaml", ".yml")
    file = Path(name) if is_path else project / FOLDER / f"{name}.yaml"
    if not file.is_file():
        known = sorted(other.stem for other in file.parent.glob("*.yaml"))
        choice = f"choose {' or '.join(known)}" if known else "write it first"
        raise FractalError(f"there is no study {file}: {choice}")
    return file


def read_study(file: Path) -> Study:
    """Read the file of a study. FractalError: it is not YAML, or a key or value is wrong."""
    try:
        return Study.model_validate(read_yaml(file))
    except NotYAMLError as error:
        raise FractalError(f"{file}: {error}") from error
    except ValidationError as error:
        raise FractalError(f"{file}: {describe(error, Study)}") from error
