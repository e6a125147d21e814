"""Write the plot and the tables of docs/speed.md from the numbers of docs/speed.json alone.

Decided here: a table replaces the text between `<!-- speed: NAME -->` and `<!-- end -->`. The rest
of the page does not change. A cell that was not measured is a dash in the table and no point in the
plot.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from fractal_model.common.errors import FractalError
from fractal_model.reporting.figures import STYLE
from tests.benchmarks.speed import BASE, BATCHES, BELOW, LEVELS, RESOLUTIONS, TABLES, Cell

COLOURS = {"ar": "#0072b2", "mar": "#d55e00"}
"""Colours of Okabe and Ito, which colour-blind people can tell apart."""
REFERENCE = "#777777"
LIMITS = ((0.5, "arithmetic"), (0.15, "both"), (0.0, "overhead"))
"""Smallest share of the ceiling, and what limits a level from that share on."""
LABEL_HEIGHT = 0.05
"""Height of a line's name as a share of the plot's height."""
DASH = "–"
Cells = dict[str, dict]


def result(cells: Cells, cell: Cell) -> dict | None:
    """Return the results of a cell, or None if it was not measured."""
    return cells.get(cell.name, {}).get("measured")


def fill_page(results: dict, page: Path) -> None:
    """Write the tables into the page. FractalError: the page has no place for one."""
    cells, text = results["cells"], page.read_text()
    tables = {
        "machine": _machine(results),
        "breakdown": _breakdown(cells),
        "ratios": _ratios(cells),
        "batch": _batch(cells),
        "resolution": _resolution(cells),
        "levels": _levels(cells),
    }
    for name, table in tables.items():
        place = re.compile(rf"(<!-- speed: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not place.search(text):
            raise FractalError(f"{page} has no place <!-- speed: {name} --> … <!-- end -->")
        text = place.sub(lambda at, table=table: f"{at[1]}{table}\n{at[2]}", text)
    page.write_text(text)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose first column is text and whose others are numbers."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code_block(*commands: str) -> str:
    return "\n".join(["```", *commands, "```", ""])


def _machine(results: dict) -> str:
    machine, cells = results["machine"], results["cells"].values()
    ceilings = [cell["measured"]["ceiling_gflops_float32"] for cell in cells]
    minutes = sum(cell["seconds_in_all"] for cell in cells) / 60
    device = "" if machine["device"] == "cpu" else f"{machine['device']}, "
    return (
        f"{device}{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads; Python "
        f"{machine['python']}, torch {machine['torch']}. The ceiling, the fastest float32 matrix "
        f"product of each process, was {min(ceilings):,.0f} to {max(ceilings):,.0f} GFLOP/s. All "
        f"{len(ceilings)} measurements took {minutes:.0f} minutes."
    )


def _breakdown(cells: Cells) -> str:
    parts = []
    for cell in TABLES:
        measured = result(cells, cell)
        parts.append(_code_block(cell.command))
        parts.append(_by_level(measured) if measured else f"{DASH}\n")
    return "\n".join(parts).rstrip()


def _by_level(measured: dict) -> str:
    ceiling, levels = measured["ceiling_gflops"], measured["levels"]
    total = sum(level["seconds_per_image"] for level in levels)
    rows = []
    for level in levels:
        seconds, gflop = level["seconds_per_image"], level["gflop_per_image"]
        share = gflop / seconds / ceiling
        limit = next(name for least, name in LIMITS if share >= least)
        numbers = (f"{seconds:.3f}", f"{seconds / total:.0%}", f"{gflop:.3g}", f"{share:.0%}")
        rows.append([level["level"], *numbers, limit])
    heads = ("level", "seconds an image", "of the time", "GFLOP an image", "of the ceiling")
    return _table((*heads, "limited by"), rows) + "\n"


def _ratios(cells: Cells) -> str:
    rows = []
    for cell in TABLES:
        m = result(cells, cell)
        if m is None or "times_faster_than_reference" not in m:
            continue
        ours, published = m["gflop_per_image"], m["published_gflop_per_image"]
        numbers = (
            f"{m['seconds_per_image']:.3f}",
            f"{ours:.3g}",
            f"{published:.3g}",
            f"{published / ours:.2f}",
            f"{m['utilisation']:.0%}",
            f"{m['reference_seconds_per_image']:.3f}",
            f"{m['times_faster_than_reference']:.1f}",
        )
        rows.append([cell.generator.upper(), *numbers])
    heads = ("", "seconds an image", "GFLOP", "published GFLOP", "published / ours")
    return _table((*heads, "of the ceiling", "uncached, seconds", "times faster"), rows)


def _commands(cells: Iterable[Cell], **words: str) -> str:
    """Return the commands of the cells. `words` replace options, so that cells share a command."""
    plain = (replace(c, repeats=1, warm_up=True, reference=False, **words) for c in cells)
    return _code_block(*dict.fromkeys(cell.command for cell in plain))


def _batch(cells: Cells) -> str:
    rows = [
        [str(batch), *(_seconds(cells, Cell(kind, batch=batch)) for kind in COLOURS)]
        for batch in BATCHES
    ]
    commands = _commands((Cell(kind) for kind in COLOURS), batch="BATCH")
    return f"{commands}\n{_table(('batch', 'AR', 'MAR'), rows)}"


def _resolution(cells: Cells) -> str:
    kinds = [(kind, below) for kind in COLOURS for below in BELOW[kind]]
    rows = [
        [f"{side} px", *(_seconds(cells, Cell(kind, f"{side},{b}")) for kind, b in kinds)]
        for side in RESOLUTIONS
    ]
    commands = _commands(Cell(kind, f"{RESOLUTIONS[-1]},{below}") for kind, below in kinds)
    heads = ("", *(f"{kind.upper()}, side,{below}" for kind, below in kinds))
    return f"{commands}\n{_table(heads, rows)}"


def _levels(cells: Cells) -> str:
    rows = []
    for levels in LEVELS:
        row = [f"`{levels}`"]
        for kind in COLOURS:
            cell = Cell(kind, levels)
            measured = result(cells, cell)
            operations = f"{measured['gflop_per_image']:.3g}" if measured else DASH
            row += [_seconds(cells, cell), operations]
        rows.append(row)
    commands = _commands(Cell(kind, levels) for kind in COLOURS for levels in LEVELS)
    heads = ("levels", "AR, seconds", "AR, GFLOP", "MAR, seconds", "MAR, GFLOP")
    return f"{commands}\n{_table(heads, rows)}"


def _seconds(cells: Cells, cell: Cell) -> str:
    measured = result(cells, cell)
    return f"{measured['seconds_per_image']:.3g}" if measured else DASH


def draw_plot(cells: Cells, file: Path) -> None:
    """Draw three panels with the same scale of time, which fits all lines."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12.5, 4.6), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        for axes in panels:
            axes.set(xscale="log", yscale="log")
        panels[0].set_ylabel("seconds per image")
        panels[0].yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        panels[0].yaxis.set_minor_formatter(NullFormatter())
        _draw_batch(panels[0], cells)
        _draw_resolution(panels[1], cells)
        _draw_levels(panels[2], cells)
        times = [y for axes in panels for line in axes.lines for y in line.get_ydata()]
        bottom, top = min(times, default=0.1) / 2, 4 * max(times, default=10)  # room for names
        panels[0].set_ylim(bottom, top)
        for axes in panels:
            _name_lines(axes, math.log10(top / bottom))
        figure.savefig(file, dpi=150, facecolor="white")


def _draw_batch(axes: Axes, cells: Cells) -> None:
    axes.set(title=f"batch ({BASE})", xlabel="images at a time")
    for kind in COLOURS:
        points = [(b, result(cells, Cell(kind, batch=b))) for b in BATCHES]
        _line(axes, points, kind, kind.upper())
        _arithmetic(axes, points, kind)
    first = result(cells, Cell("ar"))
    _slope(axes, BATCHES[0], BATCHES[-1], first, -1, "a batch as\nlong as one")
    _ticks(axes, BATCHES, [str(b) for b in BATCHES], room=6)


def _draw_resolution(axes: Axes, cells: Cells) -> None:
    axes.set(title="resolution (one image)", xlabel="pixels of an image")
    for kind in COLOURS:
        for below, style in zip(BELOW[kind], ("o-", "s--"), strict=False):
            points = [(s * s, result(cells, Cell(kind, f"{s},{below}"))) for s in RESOLUTIONS]
            _line(axes, points, kind, f"{kind.upper()}, side,{below}", style=style)
    first = result(cells, Cell("mar", f"{RESOLUTIONS[0]},{BELOW['mar'][-1]}"))
    ends = RESOLUTIONS[0] ** 2, RESOLUTIONS[-1] ** 2
    _slope(axes, *ends, first, 1, "as the pixels")
    _ticks(axes, [s * s for s in RESOLUTIONS], [f"{s}²" for s in RESOLUTIONS], room=6)


def _draw_levels(axes: Axes, cells: Cells) -> None:
    side = LEVELS[0].partition(",")[0]
    axes.set(title=f"levels (one image of {side} px)", xlabel="levels above the pixel network")
    counts = [levels.count(",") for levels in LEVELS]
    for kind in COLOURS:
        points = [(n, result(cells, Cell(kind, v))) for n, v in zip(counts, LEVELS, strict=True)]
        _line(axes, points, kind, kind.upper())
        _arithmetic(axes, points, kind)
    first = result(cells, Cell("mar", LEVELS[0]))
    _slope(axes, counts[0], counts[-1], first, 1, "as the levels")
    names = [f"{n}\n({v})" for n, v in zip(counts, LEVELS, strict=True)]
    _ticks(axes, counts, names, room=1.9)


def _line(
    axes: Axes,
    points: Iterable[tuple[int, dict | None]],
    kind: str,
    label: str,
    style: str = "o-",
) -> None:
    """Draw a line through the measured points."""
    pairs = [(x, measured["seconds_per_image"]) for x, measured in points if measured]
    if pairs:
        look = {"color": COLOURS[kind], "linewidth": 1.8, "markersize": 5}
        axes.plot(*zip(*pairs, strict=True), style, label=label, **look)


def _arithmetic(axes: Axes, points: Iterable[tuple[int, dict | None]], kind: str) -> None:
    """Draw how long the operations would take at the ceiling."""
    pairs = [(x, m["gflop_per_image"] / m["ceiling_gflops"]) for x, m in points if m]
    if pairs:
        label = f"{kind.upper()}, arithmetic"
        axes.plot(*zip(*pairs, strict=True), ":", color=COLOURS[kind], linewidth=1.5, label=label)


def _slope(axes: Axes, start: int, end: int, first: dict | None, power: int, label: str) -> None:
    """Draw a reference line y ~ x ** power that begins below the first point."""
    if first is not None:
        height = 0.6 * first["seconds_per_image"]
        look = {"color": REFERENCE, "linewidth": 1.1, "linestyle": (0, (5, 4))}
        ys = [height, height * (end / start) ** power]
        axes.plot([start, end], ys, label=label, **look)


def _ticks(axes: Axes, places: Sequence[int], names: Sequence[str], *, room: float) -> None:
    """Name the places of the axis. `room` is the space for line names as a factor of the last."""
    axes.set_xticks(places, names)
    axes.xaxis.set_minor_locator(NullLocator())
    edge = (places[-1] / places[0]) ** 0.05
    axes.set_xlim(places[0] / edge, places[-1] * room)


def _name_lines(axes: Axes, decades: float) -> None:
    """Write each line's name at its right end, moved up where it would cover another name."""
    apart, below = decades * LABEL_HEIGHT, -math.inf
    for line in sorted(axes.lines, key=lambda line: line.get_ydata()[-1]):
        x, y = line.get_xdata()[-1], math.log10(line.get_ydata()[-1])
        label = str(line.get_label())
        y = max(y, below + apart * (1 + label.count("\n")))
        below = y
        axes.annotate(
            label,
            (x, 10**y),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=line.get_color(),
        )
