"""FID over guidance and logit scale, as a figure."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fractal_model.reporting.figures import INK, ORANGE, STYLE
from fractal_model.reporting.published import PublishedResult

Cell = tuple[float, float]
"""Guidance and logit scale."""
CELL_WIDTH, CELL_HEIGHT, MARGIN = 0.9, 0.7, 2.2


def guidance_heat_map(
    values: Mapping[Cell, float], *, metric: str, best: Cell, published: PublishedResult | None
) -> Figure:
    """A cell for each combination, with its value; the best one framed, the published optimum as a
    star where it lies between the cells, at the edge where it lies outside."""
    columns = sorted({guidance for guidance, _ in values})
    rows = sorted({scale for _, scale in values})
    table = np.array([[values.get((w, s), np.nan) for w in columns] for s in rows])
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        size = (MARGIN + CELL_WIDTH * len(columns), MARGIN + CELL_HEIGHT * len(rows))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        picture = axes.imshow(table, cmap="viridis_r", origin="lower", aspect="auto")
        figure.colorbar(picture, label=metric)
        axes.set(xlabel="guidance", ylabel="logit scale")
        axes.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
        axes.set_yticks(range(len(rows)), [f"{value:g}" for value in rows])
        _numbers(axes, table)
        corner = (columns.index(best[0]) - 0.48, rows.index(best[1]) - 0.48)
        axes.add_patch(Rectangle(corner, 0.96, 0.96, fill=False, edgecolor=ORANGE, linewidth=3))
        if published is not None and published.guidance is not None:
            _star(axes, columns, rows, published)
        return figure


def _numbers(axes: matplotlib.axes.Axes, table: np.ndarray) -> None:
    known = table[np.isfinite(table)]
    middle = (known.min() + known.max()) / 2 if len(known) else 0.0
    for (row, column), value in np.ndenumerate(table):
        text = f"{value:.4g}" if np.isfinite(value) else "–"
        colour = "white" if value > middle else INK  # the scale's high end is dark
        axes.text(column, row, text, ha="center", va="center", color=colour)


def _star(
    axes: matplotlib.axes.Axes, columns: list[float], rows: list[float], published: PublishedResult
) -> None:
    x = np.interp(published.guidance, columns, range(len(columns)))
    y = np.interp(published.logit_scale, rows, range(len(rows)))
    label = (
        f"{published.model}, published: guidance {published.guidance:g}, "
        f"logit scale {published.logit_scale:g}"
    )
    axes.plot(x, y - 0.3, "*", color=ORANGE, markersize=13, linestyle="none", label=label)
    axes.figure.legend(loc="outside lower center")
