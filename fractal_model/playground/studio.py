"""What the playground does, without its page: it draws, edits, compares and examines images.

Decided here: one model, with its guide if it has one, is in memory at a time, and one request at a
time uses it.

Shapes: B images of side S.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from fractal_model.common.devices import compute_device
from fractal_model.common.errors import FractalError
from fractal_model.config.sampling import SamplingConfig
from fractal_model.evaluation.image_likelihood import image_pixel_bits
from fractal_model.generation.request import (
    change_sampling,
    parse_numbers,
    require_request,
)
from fractal_model.model.fractal import NO_CLASS, FractalModel
from fractal_model.playground.growing import watch_growth
from fractal_model.playground.views import picture_of
from fractal_model.sampling.known import KnownPixels
from fractal_model.tracking.model_source import attach_guide, load_model

MOST_IMAGES = 16
"""Largest number of images that are drawn side by side."""
PASSES = 16
"""Masks for each image in the likelihood of a MAR model."""


@dataclass(frozen=True)
class Wishes:
    """What a person sets on the page for images to be drawn."""

    model: str
    label: int
    """Number of the class, or NO_CLASS."""
    images: int = 1
    seed: int = 0
    guidance: float = 1.0
    logit_scale: float = 1.0
    iterations: str = ""
    """Iterations of each level, such as `16, 4`; empty for the model's own."""


@dataclass(frozen=True)
class Facts:
    """What the page must know of a model."""

    classes: tuple[tuple[str, int], ...]
    """Name and number of each class, and of no class."""
    sampling: SamplingConfig
    iterations: str
    side: int


class Frame(NamedTuple):
    """Images while they grow."""

    picture: Image.Image
    images: Tensor
    """(B, 3, S, S) uint8; what is not generated yet has no meaning."""
    is_finished: bool


class Surprise(NamedTuple):
    """Where a model is surprised by an image."""

    image: Tensor
    """The picture as the model sees it, (3, S, S) uint8."""
    bits: Tensor
    """Bits per dimension of each pixel, (S, S) float64; NaN for a pixel that no mask hides."""
    is_exact: bool


class _Loaded(NamedTuple):
    """The model in memory, with its guide and its own sampling settings."""

    source: str
    model: FractalModel
    sampling: SamplingConfig


class Studio:
    """The models that can be chosen, and the one of them that is in memory."""

    def __init__(self, sources: Sequence[str], outputs: Path | None) -> None:
        """`sources` are models as `--model` takes them; registered ones are in the MLflow store of
        `outputs`."""
        self.sources = tuple(sources)
        self._outputs = outputs
        self._loading, self._turn = Lock(), Lock()
        self._loaded: _Loaded | None = None

    def facts(self, source: str) -> Facts:
        """Describe a model. FractalError: it is missing or damaged."""
        _, model, sampling = self._load(source)
        config = model.config
        names = config.class_names or tuple(map(str, range(config.num_classes)))
        classes = [(name, number) for number, name in enumerate(names)]
        iterations = ", ".join(map(str, sampling.level_iterations(config)))
        return Facts((*classes, ("no class", NO_CLASS)), sampling, iterations, config.image_size)

    def draw(self, wishes: Wishes) -> Iterator[Frame]:
        """Draw images, and yield them while they grow; the last time they are finished.
        FractalError: a wish is not allowed."""
        return self._grow(wishes, None)

    def edit(self, wishes: Wishes, image: Tensor, kept: Tensor) -> Iterator[Frame]:
        """Generate the pixels of `image` (3, S, S) uint8 where `kept` (S, S) is False anew, in
        `wishes.images` variants, and yield them while they grow. FractalError: a wish is not
        allowed, or nothing is left to generate."""
        if bool(kept.all()):
            raise FractalError(
                "nothing is left to generate: paint over a part of the picture, or make it smaller"
            )
        return self._grow(wishes, KnownPixels(image[None], kept[None]))

    def examine(self, source: str, image: Tensor, label: int) -> Surprise:
        """Measure where a model is surprised by an image (3, S, S) uint8 of a class. FractalError:
        the model does not know the class."""
        _, model, _ = self._load(source)
        _require_class(label, model)
        labels = torch.tensor([label])
        with self._turn:
            (bits,) = image_pixel_bits(
                model, lambda part: (image[None], labels, part), 1, passes=PASSES, seed=0
            )
        return Surprise(image, bits, model.config.is_autoregressive)

    def _load(self, source: str) -> _Loaded:
        if source not in self.sources:
            raise FractalError(f"the model {source!r} is not offered: choose one of the list")
        with self._loading:
            if self._loaded is None or self._loaded.source != source:
                self._loaded = None  # The memory of the former model must be free before.
                model = load_model(source, self._outputs).to(compute_device())
                own = SamplingConfig() if model.serving is None else model.serving.sampling
                sampling = attach_guide(model, own, self._outputs)
                self._loaded = _Loaded(source, model, sampling)
            return self._loaded

    def _grow(self, wishes: Wishes, known: KnownPixels | None) -> Iterator[Frame]:
        _, model, sampling = self._load(wishes.model)
        if not 1 <= wishes.images <= MOST_IMAGES:
            raise FractalError(f"{wishes.images} images asked for: give 1 … {MOST_IMAGES}")
        _require_class(wishes.label, model)
        require_request(wishes.images, wishes.seed)
        iterations = None
        if wishes.iterations.strip():
            levels = len(model.config.levels)
            iterations = parse_numbers(wishes.iterations, "iterations", levels)
        settings = change_sampling(
            sampling,
            model.config,
            guidance=wishes.guidance,
            logit_scale=wishes.logit_scale,
            iterations=iterations,
        )
        labels = torch.full((wishes.images,), wishes.label)
        seeds = range(wishes.seed, wishes.seed + wishes.images)
        patch = model.config.levels[0].sub_patch_size
        for moment in watch_growth(self._turn, model, settings, labels, seeds, known):
            is_finished = not bool(moment.hidden.any())
            yield Frame(picture_of(moment, patch), moment.images, is_finished)


def _require_class(label: int, model: FractalModel) -> None:
    highest = model.config.num_classes - 1
    if label != NO_CLASS and not 0 <= label <= highest:
        raise FractalError(
            f"the model does not know class {label}: choose 0 … {highest}, or no class"
        )
