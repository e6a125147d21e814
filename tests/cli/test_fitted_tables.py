"""The results table in terminals of several widths."""

from __future__ import annotations

import pandas as pd
import pytest
from rich.console import Console

from fractal_model.cli.fitted_tables import terminal_tables
from fractal_model.reporting.results_table import Row, results_table, rows_of_dataset
from tests.support.evaluated_rows import DIGITS, VALUES, imagenet, protocol


def print_at(width: int, frame: pd.DataFrame, **settings: object) -> list[str]:
    console = Console(width=width, **settings)
    with console.capture() as captured:
        for table in terminal_tables(frame):
            console.print(table)
    return captured.get().splitlines()


def test_rows_that_cannot_be_compared_are_dim_and_have_a_reason():
    frame = rows_of_dataset(results_table(DIGITS), "digits")
    lines = print_at(160, frame, force_terminal=True, color_system="standard")
    (full,) = [line for line in lines if "35.46" in line and "digits v3" in line]
    (preview,) = [line for line in lines if "80.0±2.0" in line]
    assert "\x1b[2m" in preview and "\x1b[2m" not in full
    assert any("[1] preview of 50 samples" in line for line in lines)


MANY = {
    **VALUES,
    "nll_conditional_bits_per_dim": 0.7311,
    "nll_conditional_bits_per_dim_stderr": 0.0043,
    "fid_stderr": 1.23,
    "kid_stderr": 0.002,
    "precision": 0.5833,
    "recall": 0.7,
    "class_agreement": 0.9833,
}


@pytest.mark.parametrize(("width", "tables"), [(80, 3), (100, 2), (200, 1)])
def test_a_narrow_terminal_breaks_no_number(width, tables):
    rows = [Row("digits", "fractal-digits version 3", MANY, protocol(), "r3"), DIGITS[1]]
    lines = print_at(width, rows_of_dataset(results_table(rows), "digits"))
    assert max(map(len, lines)) <= width
    our_rows = [line for line in lines if line.startswith("│ digits v3 ") and "[1]" not in line]
    cells = [cell.strip() for line in our_rows for cell in line.strip("│").split("│")[1:]]
    assert len(our_rows) == tables, "one line a table"
    assert [cell for cell in cells if cell] == [
        *("2.5", "1.1", "16, 4", "300", "0.7425±0.0044", "0.7311±0.0043", "35.5±1.2"),
        *("0.5833", "0.7", "0.0100±0.0020", "0.9833"),
    ]
    headings = " ".join(lines)
    for heading in ("bits/dim", "cond.", "FID", "agreement", "KID"):
        assert heading in headings


def test_a_model_is_only_in_tables_with_its_numbers():
    lines = print_at(80, results_table([Row("imagenet64", "m", MANY, imagenet(), "r")]))
    assert sum("VDM †" in line for line in lines) == 1
    assert sum("│ m  " in line for line in lines) > sum("FractalAR-64 †" in x for x in lines) > 1
