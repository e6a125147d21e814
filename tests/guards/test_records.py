"""docs/records.md and its recipe agree with the program of `make speedrun`."""

from __future__ import annotations

import pytest

from fractal_model.common.errors import FractalError
from fractal_model.studies.study_file import read_study
from tests.benchmarks.speedrun import (
    FIRST,
    PAGE,
    RECIPE,
    TARGET,
    Entry,
    judge,
    read_entries,
    require_rules,
)
from tests.support.params import SHIPPED

FORMER = Entry("demo", (2.0, 2.1, 2.2, 2.1, 2.0), "0.7380 ± 0.0010", 170.0, "m", "abc", FIRST)


def test_the_page_names_the_target_and_its_rows_are_read():
    page = PAGE.read_text()
    assert f"**{TARGET} bits per dimension**" in page
    entries = read_entries(page)
    assert page.rstrip().endswith("".join(f"\n{entry.as_row()}" for entry in entries) or "--- |")


def test_a_row_is_read_as_it_was_written():
    page = "# x\n\n## Table\n\n| a |\n| --- |\n" + FORMER.as_row() + "\n"
    assert read_entries(page) == [FORMER]


def test_the_recipe_keeps_the_rules():
    require_rules(read_study(RECIPE), SHIPPED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": (0, 1, 2)}, "5 seeds"),
        ({"held_out": 0.1}, "held_out: validation"),
        ({"set": ("training.digits-nll.workers=4",)}, "4 CPUs"),
        ({"set": ("training.digits-nll.resources_per_worker={GPU: 1}",)}, "GPU"),
    ],
)
def test_a_recipe_that_breaks_them_is_refused(change, message):
    with pytest.raises(FractalError, match=message):
        require_rules(read_study(RECIPE).model_copy(update=change), SHIPPED)


@pytest.mark.parametrize(
    ("minutes", "bits", "machine", "outcome"),
    [
        ((1.5, 1.6, 1.5, 1.4, 1.5), TARGET, "m", "record, p = 1.5e-06"),
        ((2.0, 2.0, 1.9, 2.0, 2.1), TARGET, "m", "no record, p = 0.071"),
        ((3.0, 3.0, 3.0, 3.0, 3.1), TARGET, "m", "no record, p = 1"),
        ((1.5, 1.6, 1.5, 1.4, 1.5), TARGET + 1e-4, "m", f"misses {TARGET}"),
        ((3.0, 3.1, 3.0, 3.0, 3.0), TARGET, "another", FIRST),
    ],
)
def test_an_entry_is_judged_by_welchs_test(minutes, bits, machine, outcome):
    entry = Entry("new", minutes, "", 170.0, machine, "def")
    missed = Entry("missed", (0.1,) * 5, "", 170.0, "m", "d", f"misses {TARGET}")
    assert judge(entry, bits, [FORMER, missed]) == outcome
