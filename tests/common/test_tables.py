"""Tables of any width show every digit."""

from __future__ import annotations

import re

import pytest
from rich.console import Console
from rich.text import Text

from fractal_model.common.tables import FittedTable
from tests.support.outside_texts import NAMES, controls

NUMBERS = ["1,000,000", "405,188,608", "27,159.25", "0.7425±0.0044"]


def render(table: FittedTable, width: int) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(table)
    text = captured.get()
    assert max(map(len, text.splitlines())) <= width
    return text


def build_wide_table() -> FittedTable:
    table = FittedTable("costs", ["level", "parameters", "forward", "training", "error"])
    table.add_row("classes of the model", *NUMBERS)
    table.add_section()
    table.add_row("total", "", "", "", "1")
    table.add_row("nothing", *[""] * 4)
    return table


@pytest.mark.parametrize("width", [200, 60, 40, 30])
def test_numbers_are_whole_at_every_width(width):
    text = render(build_wide_table(), width)
    assert sorted(re.findall(r"[\d.,±]{2,}", text)) == sorted(NUMBERS)
    assert "…" not in text
    assert text.count("nothing") == 1
    assert ("continued" in " ".join(text.split())) == (width < 100)


def test_texts_are_wrapped_at_spaces():
    table = FittedTable("", ["", "cost"], texts=(0, 1), headings=False)
    table.add_row("training", "100 epochs × 1,281,167 images = 500,456 steps")
    for width in (60, 40, 30):
        assert re.findall(r"[\d,]+", render(table, width)) == ["100", "1,281,167", "500,456"]


@pytest.mark.parametrize("name", NAMES)
def test_cells_and_titles_are_shown_without_markup(name):
    table = FittedTable(name, [name, "value"])
    table.add_row(name, "1", style="dim")
    text = render(table, 80)
    assert controls(text) == []
    assert len(text) < 20_000
    if "bold" in name:
        assert text.count("cat[bold]x[/bold]") == 3


def test_a_text_with_a_style_keeps_it():
    table = FittedTable("", ["a", "b"])
    table.add_row("x", Text("fits", style="green"))
    console = Console(width=80, force_terminal=True, color_system="standard")
    with console.capture() as captured:
        console.print(table)
    assert "\x1b[32mfits" in captured.get()
