"""The heat map of a sweep: its cells, and the published optimum."""

from __future__ import annotations

import io
import math

import pytest

from fractal_model.reporting.figures import guidance_heat_map
from fractal_model.reporting.published_results import published_optimum

VALUES = {(5.5, 1.0): 9.0, (6.5, 1.0): 7.0, (5.5, 1.02): math.nan, (6.5, 1.02): 3.25}


def _figure(published=None):
    return guidance_heat_map(VALUES, metric="fid_5k", best=(6.5, 1.02), published=published)


def test_cells_have_their_numbers_at_their_places():
    axes, colours = _figure().axes
    numbers = {text.get_position(): text.get_text() for text in axes.texts}
    assert numbers == {(0, 0): "9", (1, 0): "7", (0, 1): "–", (1, 1): "3.25"}
    assert [t.get_text() for t in axes.get_xticklabels()] == ["5.5", "6.5"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["1", "1.02"]
    assert colours.get_ylabel() == "fid_5k"
    (frame,) = axes.patches
    assert frame.get_bbox().containsx(1) and frame.get_bbox().containsy(1)


def test_the_published_optimum_is_in_the_picture():
    figure = _figure(published_optimum("mar-64"))
    (star,) = figure.axes[0].lines
    assert star.get_xdata()[0] == pytest.approx(1)
    (legend,) = figure.legends
    assert "guidance 6.5, logit scale 1.02" in legend.get_texts()[0].get_text()
    file = io.BytesIO()
    figure.savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG")
