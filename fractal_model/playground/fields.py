"""The fields of the page in which a person says what to draw, and how mistakes are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import gradio as gr

from fractal_model.common.errors import FractalError
from fractal_model.playground.studio import MOST_IMAGES, Facts, Wishes

STRONGEST_GUIDANCE, STRONGEST_SCALE = 40.0, 2.0
"""Right ends of the sliders."""


class ClassField:
    """The class of the images."""

    def __init__(self, facts: Facts, name: str = "Class") -> None:
        self.field = gr.Dropdown(list(facts.classes), value=facts.classes[0][1], label=name)

    def update(self, facts: Facts) -> Any:
        """The change that another model makes."""
        return gr.update(choices=list(facts.classes), value=facts.classes[0][1])


class SettingsFields:
    """Sampling settings, which begin as the model's own."""

    def __init__(self, facts: Facts) -> None:
        guidance, scale = _ranges(facts)
        self.guidance = gr.Slider(**guidance, label="Guidance")
        self.scale = gr.Slider(**scale, step=0.01, label="Logit scale")
        self.iterations = gr.Textbox(
            facts.iterations, label="Iterations of each level", max_lines=1, max_length=100
        )

    @property
    def all(self) -> list[Any]:
        return [self.guidance, self.scale, self.iterations]

    def update(self, facts: Facts) -> list[Any]:
        """The changes that another model makes."""
        return [*(gr.update(**change) for change in _ranges(facts)), facts.iterations]


def _ranges(facts: Facts) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sliders of guidance and logit scale, which always reach the model's own values."""
    guidance, scale = facts.sampling.guidance, facts.sampling.logit_scale
    return (
        {"minimum": 0, "maximum": max(STRONGEST_GUIDANCE, guidance), "value": guidance},
        {"minimum": min(0.5, scale), "maximum": max(STRONGEST_SCALE, scale), "value": scale},
    )


class NumberFields:
    """How many images, and the seed of the first."""

    def __init__(self, *, images: int = 1) -> None:
        self.images = gr.Slider(1, MOST_IMAGES, images, step=1, label="Images")
        self.seed = gr.Number(0, label="Seed of the first image", precision=0)

    @property
    def all(self) -> list[Any]:
        return [self.images, self.seed]


def as_wishes(*values: Any) -> Wishes:
    """Return the values of the fields as wishes. They are, in this order: model, class, images,
    seed, guidance, logit scale and iterations. FractalError: a field is empty."""
    names = ("model", "class", "number of images", "seed", "guidance", "logit scale", "iterations")
    for name, value in zip(names, values, strict=True):
        if value is None:
            raise FractalError(f"there is no {name}: give one")
    model, label, images, seed, guidance, scale, iterations = values
    return Wishes(model, label, int(images), int(seed), guidance, scale, iterations)


@contextmanager
def errors_on_the_page() -> Iterator[None]:
    """Show a FractalError as a message on the page."""
    try:
        yield
    except FractalError as error:
        raise gr.Error(str(error), print_exception=False) from error


def explained(action: Callable[..., Any]) -> Callable[..., Any]:
    """Return an action of the page whose FractalError becomes a message on the page."""

    @wraps(action)
    def act(*values: Any) -> Any:
        with errors_on_the_page():
            return action(*values)

    return act


def explained_steps(action: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Return an action that yields, whose FractalError becomes a message on the page."""

    @wraps(action)
    def act(*values: Any) -> Iterator[Any]:
        with errors_on_the_page():
            yield from action(*values)

    return act
