"""Draw figures from numbers.

Decided here: each figure is a separate matplotlib object, without the global state of pyplot. As
PNG it has a white background. As SVG it has none, and its lines and texts take the colour of the
page around it, so that it can be read on a light and on a dark page.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from fractal_model.common.safe_text import shorten
from fractal_model.metrics.names import FID
from fractal_model.reporting.published_results import PublishedResult
from fractal_model.reporting.reference_curve import NORMAL_SPREADS, ReferenceCurve, epoch_means

INK = "#1b1c1e"
"""Colour of lines and texts. It must not be used for anything else, because in an SVG it is
replaced by the page's text colour."""
BLUE, ORANGE, GREY = "#3b82c4", "#e07b39", "#8a8f98"
STYLE: dict[Any, Any] = {
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "font.size": 10.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "fractal",
}
WIDTH, HEIGHT = 5.4, 3.2
MOST_BARS, LONGEST_LABEL = 30, 30
Points = Sequence[tuple[float, float]]
"""Points of a line as pairs of x and y, such as epoch and loss."""


def training_curves(
    curves: Mapping[str, Points], reference: ReferenceCurve | None = None
) -> Figure:
    """Draw a panel for each curve, over the curve of a reference if it has one. `curves` maps names
    such as `loss` to (epoch, value) pairs."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        panels = figure.subplots(1, len(curves), squeeze=False)[0]
        for axes, (name, points) in zip(panels, curves.items(), strict=True):
            axes.set(xlabel="epoch", ylabel=name)
            if reference is not None and name in reference.curves:
                _draw_over_reference(axes, points, reference, name)
            else:
                epochs, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
                axes.plot(epochs, values, color=BLUE, linewidth=1.5)
        return figure


def _draw_over_reference(axes: Axes, curve: Points, reference: ReferenceCurve, metric: str) -> None:
    """Draw the epoch means of a run's curve over those of a reference, with the differences that
    are normal as a band. The panel leaves out the high values of the run's first fifth."""
    points = reference.curves[metric]
    means = np.array(epoch_means(curve), dtype=np.float64).reshape(-1, 2)
    epochs = np.array([point.epoch for point in points])
    values = np.array([point.value for point in points])
    label = f"{reference.name}, another recipe" if reference.differences else reference.name
    axes.plot(epochs, values, color=ORANGE, linewidth=1.5, linestyle="--", label=label)
    normal = NORMAL_SPREADS * np.array([point.spread or 0.0 for point in points])
    if normal.any():
        axes.fill_between(epochs, values - normal, values + normal, color=ORANGE, alpha=0.2)
    axes.plot(*means.T, color=BLUE, linewidth=1.5, label="this run")
    axes.legend()
    begin = means[-1, 0] / 5
    late = np.concatenate([means[means[:, 0] >= begin, 1], values[epochs >= begin]])
    margin = max(np.ptp(late) / 5, normal[-1] * 1.2, 1e-3)
    axes.set_ylim(late.min() - margin, late.max() + margin)


def likelihood_histogram(bits: Tensor) -> Figure:
    """Draw the histogram of the (N,) bits per dimension of held-out images."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes("bits per dimension", "held-out images")
        axes.hist(bits.numpy(), bins="auto", color=BLUE)
        mean = bits.mean().item()
        axes.axvline(mean, color=ORANGE, linewidth=1.5, label=f"mean {mean:.4f}")
        axes.legend()
        return figure


def guidance_sweep(
    points: Mapping[float, Points], *, published: PublishedResult | None = None, metric: str = FID
) -> Figure:
    """Draw FID against guidance, with a line for each logit scale. `points` maps a logit scale to
    pairs of guidance and FID. A star marks the published optimum."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes("guidance", metric)
        colours = matplotlib.colormaps["viridis"](np.linspace(0.1, 0.8, max(1, len(points))))
        for colour, (scale, line) in zip(colours, sorted(points.items()), strict=False):
            guidance, values = np.array(sorted(line), dtype=np.float64).reshape(-1, 2).T
            axes.plot(guidance, values, "o-", color=colour, label=f"logit scale {scale:g}")
        if published is not None and published.guidance is not None:
            label = f"{published.model}, published (logit scale {published.logit_scale:g})"
            x, y = published.guidance, published.values[FID]
            axes.plot(x, y, "*", color=ORANGE, markersize=13, linestyle="none", label=label)
        axes.legend()
        return figure


def bars(values: Mapping[str, float], label: str) -> Figure:
    """Draw a bar for each of `values`, or a histogram if there are more than MOST_BARS. `label`:
    text at the axis of values."""
    with matplotlib.rc_context(STYLE):
        if len(values) > MOST_BARS:
            figure, axes = _axes(label, "classes")
            axes.hist(list(values.values()), bins="auto", color=BLUE)
            return figure
        figure, axes = _axes(label, "", height=0.9 + 0.27 * len(values))
        rectangles = axes.barh(range(len(values)), list(values.values()), color=BLUE, height=0.72)
        axes.bar_label(rectangles, fmt="%.3g", padding=3)
        names = [shorten(name, LONGEST_LABEL).replace("$", r"\$") for name in values]
        axes.set_yticks(range(len(values)), names)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlim(left=min(0.0, *values.values()))
        axes.grid(visible=False, axis="y")
        return figure


def distance_histograms(distances: Mapping[str, Tensor], label: str) -> Figure:
    """Draw one histogram for each entry of `distances` (name → (N,) distances), all in one panel.
    The bars of a histogram add up to 1. `label`: text at the x axis."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(label, "share of images")
        all_distances = np.concatenate([d.numpy() for d in distances.values()])
        edges = np.histogram_bin_edges(all_distances, bins=40).tolist()
        for colour, (name, group) in zip((ORANGE, BLUE, GREY), distances.items(), strict=False):
            weights = np.full(len(group), 1 / len(group))
            axes.hist(group.numpy(), edges, weights=weights, color=colour, alpha=0.55, label=name)
        axes.legend()
        return figure


def svg(figure: Figure) -> str:
    """Return a figure as an <svg> element with the page's text colour and no background."""
    file = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    text = file.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def _axes(x: str, y: str, *, width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y)
    return figure, axes


Cell = tuple[float, float]
"""A cell of the heat map: its guidance and its logit scale."""

CELL_WIDTH, CELL_HEIGHT, MARGIN = 0.9, 0.7, 2.2


def guidance_heat_map(
    values: Mapping[Cell, float], *, metric: str, best: Cell, published: PublishedResult | None
) -> Figure:
    """Draw a cell with its value for each pair of guidance and logit scale, and a frame around the
    cell `best`. A star marks the published optimum; if it lies outside the cells, the star is at
    the edge."""
    columns = sorted({guidance for guidance, _ in values})
    rows = sorted({scale for _, scale in values})
    table = np.array([[values.get((w, s), np.nan) for w in columns] for s in rows])
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        width, height = MARGIN + CELL_WIDTH * len(columns), MARGIN + CELL_HEIGHT * len(rows)
        figure, axes = _axes("guidance", "logit scale", width=width, height=height)
        picture = axes.imshow(table, cmap="viridis_r", origin="lower", aspect="auto")
        figure.colorbar(picture, label=metric)
        axes.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
        axes.set_yticks(range(len(rows)), [f"{value:g}" for value in rows])
        _draw_numbers(axes, table)
        corner = (columns.index(best[0]) - 0.48, rows.index(best[1]) - 0.48)
        axes.add_patch(Rectangle(corner, 0.96, 0.96, fill=False, edgecolor=ORANGE, linewidth=3))
        _draw_star(axes, columns, rows, published)
        return figure


def _draw_numbers(axes: Axes, table: np.ndarray) -> None:
    finite = table[np.isfinite(table)]
    middle = (finite.min() + finite.max()) / 2 if len(finite) else 0.0
    for (row, column), value in np.ndenumerate(table):
        text = f"{value:.4g}" if np.isfinite(value) else "–"
        colour = "white" if value > middle else INK  # The high end of the colour scale is dark.
        axes.text(column, row, text, ha="center", va="center", color=colour)


def _draw_star(
    axes: Axes, columns: list[float], rows: list[float], published: PublishedResult | None
) -> None:
    if published is None or published.guidance is None or published.logit_scale is None:
        return
    x = np.interp(published.guidance, columns, range(len(columns)))
    y = np.interp(published.logit_scale, rows, range(len(rows)))
    label = (
        f"{published.model}, published: guidance {published.guidance:g}, "
        f"logit scale {published.logit_scale:g}"
    )
    axes.plot(x, y - 0.3, "*", color=ORANGE, markersize=13, linestyle="none", label=label)
    axes.figure.legend(loc="outside lower center")
