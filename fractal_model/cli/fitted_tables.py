"""The results table for a terminal. A table that is too wide is split by columns into several."""

import re

import pandas as pd
from rich.text import Text

from fractal_model.common.safe_text import safe_text
from fractal_model.common.tables import FittedTable
from fractal_model.reporting.published_results import SOURCE
from fractal_model.reporting.results_formats import DatasetTable, split_by_dataset

_LONG_HEADING = 12


def terminal_tables(frame: pd.DataFrame) -> list[FittedTable | Text]:
    """Return what `fractal results` prints: the table and notes of each data set, then the source
    of the published numbers."""
    tables: list[FittedTable | Text] = []
    for section in split_by_dataset(frame):
        tables.append(_table(section))
        notes = (safe_text(f"[{i}] {note}") for i, note in enumerate(section.notes, start=1))
        tables += [Text(note, style="dim") for note in notes]
    return [*tables, Text(f"† published: {SOURCE}", style="dim")]


def _table(section: DatasetTable) -> FittedTable:
    cells = section.cells.map(lambda cell: cell.replace(" ± ", "±"))
    names = [_shorten(name) for name in cells.pop("model")]
    table = FittedTable(section.dataset, ["model", *map(_heading, cells)])
    rows = zip(names, section.note_numbers, cells.itertuples(index=False), strict=True)
    for name, note, row in rows:
        table.add_row(f"{name} [{note}]" if note else name, *row, style="dim" if note else "")
    return table


def _shorten(model: str) -> str:
    """Shorten `fractal-digits version 3` to `digits v3`."""
    return re.sub(r"^fractal-(.*) version (?=\d)", r"\1 v", model)


def _heading(name: str) -> str:
    """Break a heading into lines at its spaces, and a long heading also at its underscores."""
    words = name.replace(" ", "\n")
    return words if len(name) <= _LONG_HEADING else words.replace("_", "_\n")
