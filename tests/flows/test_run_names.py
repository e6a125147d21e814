"""Flow runs have names that say what they do."""

import re

import pytest
from prefect import flow

from flows.run_names import name_run


@pytest.mark.parametrize(
    ("verb", "parameters", "beginning"),
    [
        ("train", {"size": "digits", "dataset": None}, "train-digits-"),
        ("prepare", {"dataset": "flowers"}, "prepare-flowers-"),
        ("nightly", {}, "nightly-"),
    ],
)
def test_a_run_is_named_after_its_work_its_subject_and_its_time(
    prefect, verb, parameters, beginning
):
    @flow(flow_run_name=name_run(verb))
    def work(size: str | None = None, dataset: str | None = None) -> str:
        from prefect.runtime import flow_run

        return flow_run.get_name()

    name = work(**parameters)
    assert re.fullmatch(re.escape(beginning) + r"\d{4}(-\d\d){4}", name)
