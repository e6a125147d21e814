"""The results table as people and programs read it: Markdown, LaTeX, CSV, JSON, and the plain
cells that the command line lays out for a terminal.

Decided here: for people, a metric and its standard error share a cell, empty columns are left out,
and rows that do not compare are dim or in italics, with the reason in a note below; for programs,
every number has its own column.
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
"""Of columns that have a shorter or more usual name."""
_LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "_%&#${}"}
    | {"†": r"\textdagger{}", "±": r"$\pm$", "\\": r"\textbackslash{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


@dataclass(frozen=True)
class Part:
    """The rows of one data set, as texts."""

    dataset: str
    cells: pd.DataFrame
    marks: tuple[int, ...]
    """For each row the number of its note; 0 where it compares."""
    notes: tuple[str, ...]
    """Note 1, 2, …"""


def parts(frame: pd.DataFrame) -> list[Part]:
    """Of the frame of `results_table`, by data set."""
    return [
        _part(safe_text(dataset), rows) for dataset, rows in frame.groupby("dataset", sort=True)
    ]


def markdown(frame: pd.DataFrame) -> str:
    """A heading, a table and footnotes for each data set."""
    texts = []
    number = 0
    for part in parts(frame):
        cells = part.cells.map(lambda cell: str(cell).replace("|", r"\|"))
        for row, mark in enumerate(part.marks):
            if mark:
                cells.iloc[row] = [f"*{cell}*" if cell else "" for cell in cells.iloc[row]]
                cells.iloc[row, 0] += f"[^{number + mark}]"
        numbers = ["left", *["right"] * (cells.shape[1] - 1)]
        table = cells.to_markdown(index=False, colalign=numbers, disable_numparse=True)
        notes = [f"[^{number + i}]: Not comparable: {n}." for i, n in enumerate(part.notes, 1)]
        texts.append("\n".join([f"## {part.dataset}", "", table, "", *notes]).rstrip())
        number += len(notes)
    return "\n\n".join([*texts, f"† published: {SOURCE}."]) + "\n"


def latex(frame: pd.DataFrame) -> str:
    """A tabular with booktabs' rules for each data set; notes as text below it."""
    texts = []
    for part in parts(frame):
        cells = part.cells.map(_latex).rename(columns=_latex)
        for row, mark in enumerate(part.marks):
            if mark:
                cells.iloc[row] = [rf"\textit{{{c}}}" if c else "" for c in cells.iloc[row]]
                cells.iloc[row, 0] += rf"\textsuperscript{{{mark}}}"
        columns = "l" + "r" * (cells.shape[1] - 1)
        table = cells.style.hide(axis="index").to_latex(hrules=True, column_format=columns)
        notes = [
            rf"\textsuperscript{{{i}}} Not comparable: {_latex(note)}.\\"
            for i, note in enumerate(part.notes, start=1)
        ]
        texts.append("\n".join([f"% {part.dataset}", table.rstrip(), *notes]))
    return "\n\n".join([*texts, rf"\textdagger{{}} published: {SOURCE}."]) + "\n"


def csv(frame: pd.DataFrame) -> str:
    """All columns, numbers in full."""
    return frame.to_csv(index=False)


def json(frame: pd.DataFrame) -> str:
    """A list of rows; what was not measured is null."""
    return frame.to_json(orient="records", indent=2, force_ascii=False, double_precision=15) + "\n"


def _part(dataset: str, rows: pd.DataFrame) -> Part:
    notes = tuple(dict.fromkeys(reason for reason in rows["reason"] if reason))
    marks = tuple(notes.index(reason) + 1 if reason else 0 for reason in rows["reason"])
    cells = {"model": rows["model"] + rows["published"].map({True: PUBLISHED_MARK, False: ""})}
    for name in SETTINGS:
        cells[name] = rows[name].map(_plain)
    for name in rows.columns:
        if name not in KNOWN and not name.endswith(STANDARD_ERROR):
            errors = rows.get(error_name(name), pd.Series(index=rows.index, dtype=float))
            cells[name] = [_measured(*pair) for pair in zip(rows[name], errors, strict=True)]
    table = pd.DataFrame(cells, index=rows.index)
    filled = [name for name in table.columns if (table[name] != "").any()]
    return Part(dataset, table[filled].rename(columns=_heading), marks, notes)


def _heading(name: str) -> str:
    return HEADINGS.get(name) or safe_text(name, LONGEST_NAME)


def _plain(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return "" if pd.isna(value) else f"{value:,g}" if value < 1000 else f"{int(value):,}"


def _measured(value: float, error: float) -> str:
    """Four digits, or as many as the error has two of."""
    if pd.isna(value):
        return ""
    if not (math.isfinite(error) and error > 0):
        return f"{value:.4g}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def _latex(text: object) -> str:
    return str(text).translate(_LATEX)
