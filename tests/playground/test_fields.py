"""The fields of the page: empty ones are explained, and every model fits the sliders."""

from __future__ import annotations

import gradio as gr
import pytest

from fractal_model.common.errors import FractalError
from fractal_model.config.sampling import SamplingConfig
from fractal_model.playground.fields import SettingsFields, as_wishes, explained, explained_steps
from fractal_model.playground.studio import Facts, Wishes

VALUES = ("a", 3, 2.0, 7.0, 1.5, 1.1, "4, 2")


def test_the_fields_are_wishes():
    assert as_wishes(*VALUES) == Wishes("a", 3, 2, 7, 1.5, 1.1, "4, 2")


@pytest.mark.parametrize("place", range(len(VALUES)))
def test_an_empty_field_is_explained(place):
    values = [*VALUES]
    values[place] = None
    with pytest.raises(FractalError, match="there is no .*: give one"):
        as_wishes(*values)


@pytest.mark.parametrize(("guidance", "scale"), [(1.0, 1.0), (100.0, 3.0), (0.0, 0.1)])
def test_the_sliders_reach_the_values_of_every_model(guidance, scale):
    sampling = SamplingConfig(guidance=guidance, logit_scale=scale)
    facts = Facts((("no class", -1),), sampling, "4, 2", 8)
    with gr.Blocks():
        fields = SettingsFields(facts)
    for slider, value in ((fields.guidance, guidance), (fields.scale, scale)):
        assert slider.minimum <= value <= slider.maximum and slider.value == value
    for change, value in zip(fields.update(facts), (guidance, scale), strict=False):
        assert change["minimum"] <= value <= change["maximum"]


def test_an_error_becomes_a_message():
    def fail(text: str) -> None:
        raise FractalError(text)

    def steps(text: str):
        yield 1
        fail(text)

    with pytest.raises(gr.Error, match="too many"):
        explained(fail)("too many")
    with pytest.raises(gr.Error, match="too many"):
        list(explained_steps(steps)("too many"))
    assert next(explained_steps(steps)("")) == 1
