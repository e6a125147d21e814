"""The results table in a terminal.

Decided here: no number is folded; columns that do not fit the terminal's width go on in a further
table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pandas as pd
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from fractal_model.reporting.published_results import SOURCE
from fractal_model.reporting.results_formats import Part, parts

_FRAME, _BORDER, _LONG_HEADING = 1, 3, 12


def rich_tables(frame: pd.DataFrame) -> list[FittedTable | Text]:
    """For the terminal: each data set's table, and its notes."""
    shown: list[FittedTable | Text] = []
    for part in parts(frame):
        shown.append(FittedTable(part))
        shown += [Text(f"[{i}] {note}", style="dim") for i, note in enumerate(part.notes, start=1)]
    return [*shown, Text(f"† published: {SOURCE}", style="dim")]


class FittedTable:
    """A data set's rows for a terminal of any width: as many tables as its columns need, each
    with the models that have something there."""

    def __init__(self, part: Part) -> None:
        self._title, self._marks = part.dataset, part.marks
        cells = part.cells.map(lambda cell: cell.replace(" ± ", "±"))
        names = zip(cells.pop("model"), part.marks, strict=True)
        self._models = [f"{_short(name)}{f' [{mark}]' if mark else ''}" for name, mark in names]
        self._cells = cells.rename(columns=_heading)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        title, filled = self._title, self._cells != ""
        shown = ~filled.any(axis=1)  # a model without any number: once, in the first table
        for columns in self._fitting(options.max_width):
            shown |= filled[columns].any(axis=1)
            yield self._table(title, columns, shown.to_numpy().nonzero()[0].tolist())
            title, shown = f"{self._title}, continued", shown & False

    def _fitting(self, width: int) -> Iterator[list[str]]:
        """Columns that fit beside the models' names; one at least."""
        free = room = width - _FRAME - _widest("model", *self._models)
        columns: list[str] = []
        for name in self._cells.columns:
            wanted = _widest(name, *self._cells[name])
            if columns and wanted > free:
                yield columns
                columns, free = [], room
            columns.append(name)
            free -= wanted
        yield columns

    def _table(self, title: str, columns: list[str], rows: list[int]) -> Table:
        table = Table(title=title, title_justify="left", title_style="bold")
        table.add_column("model", overflow="fold")
        for name in columns:
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            cells = map(Text, self._cells[columns].iloc[row])
            table.add_row(
                Text(self._models[row]), *cells, style="dim" if self._marks[row] else None
            )
        return table


def _widest(*texts: str) -> int:
    """Letters that a column takes, with its border."""
    return max(cell_len(line) for text in texts for line in text.split("\n")) + _BORDER


def _short(model: str) -> str:
    """`digits v3` of `fractal-digits version 3`."""
    return re.sub(r"^fractal-(.*) version (?=\d)", r"\1 v", model)


def _heading(name: str) -> str:
    """On lines of its own words; what is one long word goes on after its underscores."""
    words = name.replace(" ", "\n")
    return words if len(name) <= _LONG_HEADING else words.replace("_", "_\n")
