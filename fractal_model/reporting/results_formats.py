"""Write the results table as Markdown, LaTeX, CSV or JSON, or as cells for a terminal.

Decided here: for people, a metric and its standard error share a cell, empty columns are left out,
and rows that cannot be compared are dim or in italics, with the reason in a note below. For
programs, every number has a column.
"""

import math
from dataclasses import dataclass

import pandas as pd

from fractal_model.common.safe_text import LONGEST_NAME, safe_text
from fractal_model.metrics.names import (
    CONDITIONAL_NLL,
    FID,
    INCEPTION_SCORE,
    KID,
    NLL,
    STANDARD_ERROR,
    error_name,
)
from fractal_model.reporting.published_results import SOURCE
from fractal_model.reporting.results_table import KNOWN, SETTINGS

PUBLISHED_MARK = " †"
HEADINGS = {
    NLL: "bits/dim",
    CONDITIONAL_NLL: "bits/dim, cond.",
    INCEPTION_SCORE: "IS",
    "logit_scale": "scale",
    FID: "FID",
    KID: "KID",
}
"""Heading by name of the column. A column that is not listed here has its own name as heading."""
_LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "_%&#${}"}
    | {"†": r"\textdagger{}", "±": r"$\pm$", "\\": r"\textbackslash{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


@dataclass(frozen=True)
class DatasetTable:
    """The rows of one data set as texts."""

    dataset: str
    cells: pd.DataFrame
    note_numbers: tuple[int, ...]
    """Number of each row's note; 0 for a row that can be compared."""
    notes: tuple[str, ...]
    """Texts of note 1, 2, …: reasons why rows cannot be compared."""


def split_by_dataset(frame: pd.DataFrame) -> list[DatasetTable]:
    """Split the frame of `results_table` into one table for each data set."""
    groups = frame.groupby("dataset", sort=True)
    return [_dataset_table(safe_text(dataset), rows) for dataset, rows in groups]


def markdown(frame: pd.DataFrame) -> str:
    """Return Markdown with a heading, a table and footnotes for each data set."""
    texts = []
    number = 0
    for section in split_by_dataset(frame):
        cells = section.cells.map(lambda cell: str(cell).replace("|", r"\|"))
        for row, note_number in enumerate(section.note_numbers):
            if note_number:
                cells.iloc[row] = [f"*{cell}*" if cell else "" for cell in cells.iloc[row]]
                cells.iloc[row, 0] += f"[^{number + note_number}]"
        numbers = ["left", *["right"] * (cells.shape[1] - 1)]
        table = cells.to_markdown(index=False, colalign=numbers, disable_numparse=True)
        notes = [f"[^{number + i}]: Not comparable: {n}." for i, n in enumerate(section.notes, 1)]
        texts.append("\n".join([f"## {section.dataset}", "", table, "", *notes]).rstrip())
        number += len(notes)
    return "\n\n".join([*texts, f"† published: {SOURCE}."]) + "\n"


def latex(frame: pd.DataFrame) -> str:
    """Return LaTeX with a booktabs table for each data set and, below each table, its notes as
    text."""
    texts = []
    for section in split_by_dataset(frame):
        cells = section.cells.map(_escape_latex).rename(columns=_escape_latex)
        for row, note_number in enumerate(section.note_numbers):
            if note_number:
                cells.iloc[row] = [rf"\textit{{{c}}}" if c else "" for c in cells.iloc[row]]
                cells.iloc[row, 0] += rf"\textsuperscript{{{note_number}}}"
        columns = "l" + "r" * (cells.shape[1] - 1)
        table = cells.style.hide(axis="index").to_latex(hrules=True, column_format=columns)
        notes = [
            rf"\textsuperscript{{{i}}} Not comparable: {_escape_latex(note)}.\\"
            for i, note in enumerate(section.notes, start=1)
        ]
        texts.append("\n".join([f"% {section.dataset}", table.rstrip(), *notes]))
    return "\n\n".join([*texts, rf"\textdagger{{}} published: {SOURCE}."]) + "\n"


def csv(frame: pd.DataFrame) -> str:
    """Return the frame as CSV, with all columns and all digits."""
    return frame.to_csv(index=False)


def json(frame: pd.DataFrame) -> str:
    """Return the frame as a JSON list of rows. A metric that was not measured is null."""
    return frame.to_json(orient="records", indent=2, force_ascii=False, double_precision=15) + "\n"


def _dataset_table(dataset: str, rows: pd.DataFrame) -> DatasetTable:
    notes = tuple(dict.fromkeys(reason for reason in rows["reason"] if reason))
    note_numbers = tuple(notes.index(reason) + 1 if reason else 0 for reason in rows["reason"])
    cells = {"model": rows["model"] + rows["published"].map({True: PUBLISHED_MARK, False: ""})}
    for name in SETTINGS:
        cells[name] = rows[name].map(_format_setting)
    for name in rows.columns:
        if name not in KNOWN and not name.endswith(STANDARD_ERROR):
            errors = rows.get(error_name(name), pd.Series(index=rows.index, dtype=float))
            cells[name] = list(map(_format_metric, rows[name], errors))
    table = pd.DataFrame(cells, index=rows.index)
    filled = [name for name in table.columns if (table[name] != "").any()]
    return DatasetTable(dataset, table[filled].rename(columns=_heading), note_numbers, notes)


def _heading(name: str) -> str:
    return HEADINGS.get(name) or safe_text(name, LONGEST_NAME)


def _format_setting(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return "" if pd.isna(value) else f"{value:,g}" if value < 1000 else f"{int(value):,}"


def _format_metric(value: float, error: float) -> str:
    """Return `value ± error` as text, rounded so that the error has two digits. Without an error
    the value has four digits; a missing value gives ""."""
    if pd.isna(value):
        return ""
    if not (math.isfinite(error) and error > 0):
        return f"{value:.4g}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def _escape_latex(text: object) -> str:
    return str(text).translate(_LATEX)
