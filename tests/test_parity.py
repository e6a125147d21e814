"""Our model is the published one: the three measured cases, and folders that are unusable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from fractal_model.errors import FractalError
from fractal_model.parity import compare

CASES = Path(__file__).parent / "parity"


@pytest.fixture
def case(tmp_path: Path) -> Path:
    folder = tmp_path / "case"
    shutil.copytree(CASES / "mar3", folder)
    return folder


@pytest.mark.parametrize("name", ["ar3", "mar3", "mar4"])
def test_every_quantity_is_within_its_tolerance(name):
    found = list(compare(CASES / name))
    missed = [c for c in found if not c.passed]
    assert not missed
    assert {c.quantity for c in found} == set(load_file(CASES / name / "expected.safetensors"))


@pytest.mark.parametrize(
    "parameter", ["generator.norm.weight", "next_fractal.generator.mask_token"]
)
def test_a_changed_weight_is_seen(case, parameter):
    weights = load_file(case / "weights.safetensors")
    weights[parameter] *= 1.1
    save_file(weights, case / "weights.safetensors")
    assert not all(c.passed for c in compare(case))


def test_nan_is_missed(case):
    weights = load_file(case / "weights.safetensors")
    weights["fake_latent"][:] = float("nan")
    save_file(weights, case / "weights.safetensors")
    losses = {c.quantity: c.passed for c in compare(case)}
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


def _no_masks(case):
    inputs = load_file(case / "inputs.safetensors")
    del inputs["mask_level1"]
    save_file(inputs, case / "inputs.safetensors")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda case: (case / "inputs.safetensors").unlink(), "inputs.safetensors"),
        (lambda case: (case / "config.json").write_text("{"), "config.json|unusable"),
        (_drop_key, "num_conds"),
        (_truncate, "unusable"),
        (_wrong_shape, "class_embedding"),
        (_unknown_quantity, "fid"),
        (_no_masks, "mask_level1"),
    ],
)
def test_an_unusable_case_is_named_on_one_line(case, spoil, named):
    spoil(case)
    with pytest.raises(FractalError, match=named) as caught:
        list(compare(case))
    assert "\n" not in str(caught.value)
