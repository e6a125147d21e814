"""`make pictures` finds what documents show of the demo's model, and puts the new output there."""

from __future__ import annotations

import pytest

from fractal_model.common.errors import FractalError
from tests.benchmarks.pictures import (
    CHAMPION,
    TABLE,
    commands_of,
    excerpt_lines,
    is_of_demo,
    run_in,
    shorten_table,
    show_output,
)
from tests.support import REPOSITORY
from tests.support.documents import FENCE

BLOCK = f"""```
$ fractal sample --model {CHAMPION} --classes 3 --out three
old: three
$ cp three/0.png three.png
```"""


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (BLOCK, True),
        (BLOCK.replace(CHAMPION, "models:/fractal-emoji-64@champion"), False),
        ("```\nfractal sample\n```", False),
        (f"```\n$ fractal evaluate {CHAMPION}\n```", False),
    ],
)
def test_blocks_of_the_demo_are_told_from_others(block, expected):
    assert is_of_demo(block) is expected


def test_the_output_of_each_command_stands_below_it():
    outputs = {"fractal": "new: three\nand more\n", "cp": ""}
    shown = show_output(BLOCK, lambda command: outputs[command.split()[0]])
    assert shown == BLOCK.replace("old: three", "new: three\nand more")


def test_an_excerpt_keeps_the_rows_that_it_showed():
    output = ["title", "│ total │ 3 │", "│ other │ 4 │", "│ total │ 5 │", "│       │ 6 │"]
    shown = ["│ other │ 1 │", "│ total │ 1 │", "…", "│       │ 1 │"]
    assert excerpt_lines(shown, output) == ["│ other │ 4 │", "│ total │ 5 │", "…", "│       │ 6 │"]


def test_an_excerpt_with_a_row_that_is_gone_is_refused():
    with pytest.raises(FractalError, match="the output has no row 'other': change the excerpt"):
        excerpt_lines(["│ other │ 1 │"], ["│ total │ 1 │"])


@pytest.mark.parametrize("page", ["docs/costs.md", "infra/README.md"])
def test_the_costs_on_a_page_are_those_of_the_planner(page, tmp_path):
    text = (REPOSITORY / page).read_text()
    plan = next(block for block in FENCE.findall(text) if "# excerpt" in block)
    assert is_of_demo(plan)
    assert show_output(plan, run_in(tmp_path)) == plan


def test_the_commands_of_the_documents_are_found():
    text = (REPOSITORY / "docs" / "models.md").read_text()
    commands = [c for block in FENCE.findall(text) if is_of_demo(block) for c in commands_of(block)]
    names = {command.split()[1] for command in commands if command.startswith("fractal ")}
    assert names == {"sample", "edit", "animate", "likelihood"}


def test_a_table_is_shortened_to_the_one_in_the_readme():
    readme = (REPOSITORY / "README.md").read_text()
    table = TABLE.search(readme)[0]
    row = next(line for line in table.splitlines() if "fid_stderr" in line)
    longer = table.replace(row, row + "\n" + row.replace("fid_stderr", "kid_stderr"))
    rows = longer.splitlines()
    rows.remove(next(line for line in rows if "│ …" in line))
    assert shorten_table("\n".join(rows)) == table
