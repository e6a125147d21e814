"""A checkout has its flows and settings beside the package; the wheel is in tests/guards/."""

import sys

import pytest

from fractal_model.common.installation import FLOWS, import_flow, shipped_file
from tests.support import REPOSITORY


def test_a_checkout_has_its_flows_beside_the_package():
    assert FLOWS == "flows"
    assert import_flow("run_names") is sys.modules["flows.run_names"]


def test_a_module_that_does_not_exist_is_an_import_error():
    with pytest.raises(ModuleNotFoundError, match=r"flows\.trian"):
        import_flow("trian")


def test_a_checkout_ships_its_own_settings():
    assert shipped_file("params.yaml") == REPOSITORY / "params.yaml"
