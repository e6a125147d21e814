"""The table and the page of a study: their numbers, and the text of people that stays."""

from __future__ import annotations

import pytest

from fractal_model.common.errors import FractalError
from fractal_model.studies.study_file import Study
from fractal_model.studies.study_page import UNDECIDED, read_decision, write_page
from fractal_model.studies.trial_table import TrialRow, read_rows, write_rows

NLL = "nll_bits_per_dim"
STUDY = Study(
    question="Does it help?",
    size="digits",
    set=("training.digits.epochs=4",),
    variants={"a": ("models.digits.dropout=0.1",)},
    seeds=(0, 1, 2),
    metrics=(NLL, "recall"),
)


def row(variant: str, seed: int, bits: float) -> TrialRow:
    return TrialRow(
        variant=variant,
        seed=seed,
        fingerprint=f"{variant}{seed}",
        images=6000,
        minutes=1.5,
        machine="x86_64, 2 CPUs",
        curve=((3000, 0.9), (6000, round(bits, 5))),
        metrics={NLL: bits, "recall": None},
    )


ROWS = [row("base", seed, 0.75 + seed / 100) for seed in range(3)] + [
    row("a", seed, 0.70 + seed / 100 + seed / 1000) for seed in range(3)
]


def test_the_table_is_read_as_it_was_written(tmp_path):
    file = tmp_path / "s.csv"
    assert read_rows(file) == []
    write_rows(file, ROWS)
    assert read_rows(file) == ROWS
    text = file.read_text()
    assert text.startswith(f"variant,seed,fingerprint,images,minutes,machine,curve,{NLL},recall\n")
    write_rows(file, read_rows(file))
    assert file.read_text() == text


@pytest.mark.parametrize(
    "text", ["variant,seed\nbase,0\n", "x\x00", 'variant\n"base\n', "variant,seed\nbase,0,7\n"]
)
def test_a_damaged_table_is_refused(tmp_path, text):
    file = tmp_path / "s.csv"
    file.write_text(text)
    with pytest.raises(FractalError, match=r"s\.csv is not a table of trials .* restore it"):
        read_rows(file)


def test_the_page_has_numbers_settings_and_the_verdict(tmp_path):
    file = tmp_path / "s.md"
    write_page(file, "s", STUDY, ROWS)
    text = file.read_text()
    assert "| a | 0.7110 ± 0.0064 | **−0.0490 ± 0.0006** | better |" in text
    assert "| base | 3 | 6,000 | 1.50 ± 0.00 | 1.00 ± 0.00 |" in text
    assert "| a | 3 | 6,000 | 1.50 ± 0.00 | 0.87 ± 0.00 |" in text  # (0.9 − 0.75) / (0.9 − 0.7)
    assert "| a | `models.digits.dropout=0.1` |" in text
    assert "10% of the training images" in text and "fractal study s" in text
    assert "recall" in text and UNDECIDED in text


def test_the_text_of_people_stays(tmp_path):
    file = tmp_path / "s.md"
    write_page(file, "s", STUDY, ROWS)
    file.write_text(file.read_text().replace(UNDECIDED, "Kept: a.\n\nIt is better."))
    before = file.read_text()
    write_page(file, "s", STUDY, ROWS)
    assert file.read_text() == before and read_decision(file) == "Kept: a.\n\nIt is better."
    write_page(file, "s", STUDY, ROWS[:3])
    assert "Kept: a." in file.read_text() and "0.7110" not in file.read_text()
