"""The report of a data set whose class names have control characters."""

from __future__ import annotations

import numpy as np

from fractal_model.data.report import write_report
from fractal_model.data.writing import write_prepared
from tests.support.outside_texts import NAMES, controls


def test_class_names_cannot_control_the_terminal_that_shows_the_report(tmp_path):
    names = [name for name in NAMES if "\udcff" not in name]  # no manifest can have it
    images = [(np.zeros((8, 8, 3), np.uint8), label) for label in range(len(names))]
    write_prepared(
        tmp_path / "odd",
        dataset="odd",
        source="a folder",
        preprocessing="none",
        resolution=8,
        class_names=names,
        splits={"train": images},
    )
    metrics = write_report(tmp_path / "odd", tmp_path / "report")
    assert metrics["classes"] == len(names)
    text = (tmp_path / "report/classes.csv").read_text()
    assert controls(text) == []
    assert r"cat\x1b[2J" in text and r"cat\nnext" in text
