"""A proposed setting with its reason, and a proposal: the four entries of a size.

Decided here: a reason is part of a setting, so that the table on the terminal and the comments in
params.yaml say the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from fractal_model.config.architecture import Architecture
from fractal_model.config.evaluation import EvaluationConfig
from fractal_model.config.params import Size
from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.training import TrainingConfig
from fractal_model.data.manifest import Manifest


class Choice(NamedTuple):
    """The value of a setting and the reason for it, a few words; "" if it needs no reason."""

    value: Any
    reason: str = ""


Entry = Mapping[str, Choice]
"""The settings of a size in one section of params.yaml."""


@dataclass(frozen=True)
class ImageSet:
    """What a proposal needs to know of a data set."""

    name: str
    resolution: int
    """Side of the images in pixels."""
    classes: int
    train: int
    """Number of training images."""
    held_out: int
    """Number of validation images; 0 if the data set has none."""

    @classmethod
    def of(cls, manifest: Manifest) -> "ImageSet":
        """The facts of a prepared data set, which has the split `train`."""
        held_out = manifest.splits.get("validation")
        return cls(
            name=manifest.dataset,
            resolution=manifest.resolution,
            classes=len(manifest.class_names),
            train=manifest.splits["train"].images,
            held_out=held_out.images if held_out else 0,
        )


@dataclass(frozen=True)
class Proposal:
    """The proposed entries of a size in params.yaml, and remarks about the whole."""

    models: Entry
    training: Entry
    sampling: Entry
    evaluation: Entry
    notes: tuple[str, ...]

    @property
    def sections(self) -> dict[str, Entry]:
        """The entries by the names of their sections, in the order of params.yaml."""
        names = ("models", "training", "sampling", "evaluation")
        return {name: getattr(self, name) for name in names}

    def size(self, name: str) -> Size:
        """The proposal as the settings of a size called `name`."""
        return Size(
            name=name,
            model=Architecture.model_validate(values(self.models)).to_model(),
            training=TrainingConfig.model_validate(values(self.training)),
            sampling=SamplingConfig.model_validate(values(self.sampling)),
            evaluation=EvaluationConfig.model_validate(values(self.evaluation)),
        )


def values(entry: Entry) -> dict[str, Any]:
    """The settings of an entry without their reasons."""
    return {name: choice.value for name, choice in entry.items()}
