"""The studies of docs/studies: their settings exist, and their pages show the numbers of their
tables."""

from __future__ import annotations

import pytest

from fractal_model.config.params import load_params
from fractal_model.studies.study_file import FOLDER, read_study
from fractal_model.studies.study_page import read_decision, render_page
from fractal_model.studies.trial_table import read_rows
from tests.support import REPOSITORY
from tests.support.params import SHIPPED

FILES = sorted((REPOSITORY / FOLDER).glob("*.yaml"))
WITH_RESULTS = [file for file in FILES if file.with_suffix(".csv").is_file()]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_settings_of_a_study_exist(file):
    study = read_study(file)
    for settings in study.recipes.values():
        load_params(SHIPPED, settings).size(study.size)


def test_a_page_or_a_table_belongs_to_a_study():
    made = {f.stem for f in (REPOSITORY / FOLDER).iterdir() if f.suffix in (".csv", ".md")}
    assert made <= {file.stem for file in FILES}
    pages = {file.stem for file in (REPOSITORY / FOLDER).glob("*.md")}
    assert pages == {file.stem for file in WITH_RESULTS}


@pytest.mark.parametrize("file", WITH_RESULTS, ids=lambda file: file.stem)
def test_a_page_shows_the_numbers_of_its_table(file):
    study, rows = read_study(file), read_rows(file.with_suffix(".csv"))
    page = file.with_suffix(".md")
    assert {row.variant for row in rows} <= set(study.recipes)
    assert page.read_text() == render_page(file.stem, study, rows, decision=read_decision(page))
