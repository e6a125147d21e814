"""Our model agrees with the published one in the measured cases; unusable cases are errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fractal_model.checkpoints.parity import compare
from fractal_model.common.errors import FractalError
from tests.support import REPOSITORY

CASES = REPOSITORY / "tests/parity"


@pytest.fixture
def case(tmp_path: Path) -> Path:
    folder = tmp_path / "case"
    shutil.copytree(CASES / "mar3", folder)
    return folder


@pytest.mark.parametrize("name", ["ar3", "mar3", "mar4"])
def test_every_quantity_is_within_its_tolerance(name):
    comparisons = list(compare(CASES / name))
    missed = [c for c in comparisons if not c.is_within_tolerance]
    assert not missed
    assert {c.quantity for c in comparisons} == set(
        load_file(CASES / name / "expected.safetensors")
    )


@pytest.mark.parametrize("upper", ["mar3", "ar3"])
def test_a_level_above_one_of_the_other_generator_has_the_published_conditions(upper, tmp_path):
    """The upper level of one case is put above the lower level of the other, which has equal
    sizes. The measured conditions of the upper level do not depend on the lower level."""
    lower = {"mar3": "ar3", "ar3": "mar3"}[upper]
    folder = tmp_path / "mixed"
    shutil.copytree(CASES / upper, folder)
    settings, other = (json.loads((CASES / n / "config.json").read_text()) for n in (upper, lower))
    settings["generator_type_list"][1] = other["generator_type_list"][1]
    settings["num_conds"] = 1 if upper == "ar3" else 5
    (folder / "config.json").write_text(json.dumps(settings))
    weights = load_file(CASES / upper / "weights.safetensors")
    for name, tensor in load_file(CASES / lower / "weights.safetensors").items():
        if name.startswith("next_fractal."):
            weights[name] = tensor
    if upper == "ar3":  # It has one condition; the positions of the other four come first.
        positions = "next_fractal.generator.pos_embed_learned"
        weights[positions] = weights[positions][:, 4:].clone()
    outer = {name: t for name, t in weights.items() if not name.startswith("next_fractal.")}
    inner = load_file(CASES / lower / "weights.safetensors")
    weights = outer | {name: weights[name] for name in inner if name.startswith("next_fractal.")}
    save_file(weights, folder / "weights.safetensors")
    inputs = load_file(CASES / upper / "inputs.safetensors")
    if upper == "ar3":
        rows = len(inputs["images_uint8"]) * 16
        inputs["mask_level1"] = torch.ones(rows, 16)
    save_file(inputs, folder / "inputs.safetensors")
    expected = load_file(CASES / upper / "expected.safetensors")
    conditions = {name: t for name, t in expected.items() if name.startswith("level0_conditions_")}
    save_file(conditions, folder / "expected.safetensors")
    comparisons = list(compare(folder))
    assert {c.quantity for c in comparisons} == set(conditions)
    assert all(c.is_within_tolerance for c in comparisons)


@pytest.mark.parametrize(
    "parameter", ["generator.norm.weight", "next_fractal.generator.mask_token"]
)
def test_a_changed_weight_exceeds_a_tolerance(case, parameter):
    weights = load_file(case / "weights.safetensors")
    weights[parameter] *= 1.1
    save_file(weights, case / "weights.safetensors")
    assert not all(c.is_within_tolerance for c in compare(case))


def test_nan_is_not_within_a_tolerance(case):
    weights = load_file(case / "weights.safetensors")
    weights["fake_latent"][:] = float("nan")
    save_file(weights, case / "weights.safetensors")
    losses = {c.quantity: c.is_within_tolerance for c in compare(case)}
    assert losses["eval_loss_unconditional_nats"] is False


def _drop_key(case):
    settings = json.loads((case / "config.json").read_text())
    del settings["num_conds"]
    (case / "config.json").write_text(json.dumps(settings))


def _truncate(case):
    content = (case / "weights.safetensors").read_bytes()
    (case / "weights.safetensors").write_bytes(content[: len(content) // 2])


def _wrong_shape(case):
    settings = json.loads((case / "config.json").read_text())
    settings["num_classes"] = 11
    (case / "config.json").write_text(json.dumps(settings))


def _unknown_quantity(case):
    expected = load_file(case / "expected.safetensors")
    expected["fid"] = expected["grad_norm_total"].clone()
    save_file(expected, case / "expected.safetensors")


def _rename(old, new):
    def spoil(case):
        expected = load_file(case / "expected.safetensors")
        expected[new] = expected.pop(old)
        save_file(expected, case / "expected.safetensors")

    return spoil


def _reshape(name):
    def spoil(case):
        expected = load_file(case / "expected.safetensors")
        expected[name] = expected[name][:1].clone()
        save_file(expected, case / "expected.safetensors")

    return spoil


def _no_masks(case):
    inputs = load_file(case / "inputs.safetensors")
    del inputs["mask_level1"]
    save_file(inputs, case / "inputs.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda case: (case / "inputs.safetensors").unlink(), "inputs.safetensors"),
        (lambda case: (case / "config.json").write_text("{"), "config.json|unusable"),
        (_drop_key, "num_conds"),
        (_truncate, "unusable"),
        (shutil.rmtree, "case is not a folder"),
        (_wrong_shape, "class_embedding"),
        (lambda case: (case / "config.json").write_text("5"), "settings are .*unknown: \\['5'\\]"),
        (_unknown_quantity, "are known"),
        (_rename("level0_conditions_top", "level0_conditions_under"), "are known"),
        (_rename("greedy_sample_cfg3_uint8", "greedy_sample_cfgx_uint8"), "are known"),
        (_rename("grad_norm_total", "grad_norm.teacher"), "are known"),
        (_reshape("level0_conditions_top"), "level0_conditions_top has the shape"),
        (_reshape("greedy_sample_cfg1_uint8"), "greedy_sample_cfg1_uint8 has the shape"),
        (_no_masks, "mask_level1"),
    ],
)
def test_an_unusable_case_is_an_error_on_one_line(case, spoil, message):
    spoil(case)
    with pytest.raises(FractalError, match=message) as raised:
        list(compare(case))
    assert "\n" not in str(raised.value)
