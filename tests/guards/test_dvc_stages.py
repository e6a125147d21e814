"""The stages of dvc.yaml agree with params.yaml and with the flows' options."""

from __future__ import annotations

import re
from functools import reduce

import pytest
import yaml

from tests.guards.test_commands import mistakes
from tests.support import REPOSITORY

PARAMS = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
STAGES = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
OF_SIZES = {name: s["do"] for name, s in STAGES.items() if s.get("foreach") == "${pipeline.sizes}"}


def look_up(key: str) -> object:
    """The value at a dotted key of params.yaml. KeyError: there is none."""
    return reduce(lambda section, part: section[part], key.split("."), PARAMS)


def test_a_size_has_a_stage_for_training_and_one_for_evaluation():
    assert list(OF_SIZES) == ["train", "evaluate"]


@pytest.mark.parametrize("size", PARAMS["pipeline"]["sizes"])
@pytest.mark.parametrize("stage", OF_SIZES)
def test_stages_depend_on_settings_that_exist(stage, size):
    for key in OF_SIZES[stage]["params"]:
        look_up(key.replace("${key}", size))


@pytest.mark.parametrize("stage", STAGES)
def test_commands_of_stages_exist(stage):
    stage = STAGES[stage].get("do", STAGES[stage])
    assert mistakes(re.sub(r"\$\{.*?\}", "x", stage["cmd"]).split()) == []


@pytest.mark.parametrize("stage", OF_SIZES)
def test_the_run_cache_does_not_bring_back_results_without_their_model(stage):
    results = OF_SIZES[stage].get("outs", []) + OF_SIZES[stage]["metrics"]
    settings = [s for result in results if isinstance(result, dict) for s in result.values()]
    assert {"persist": True} in settings
