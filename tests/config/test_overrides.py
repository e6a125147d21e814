"""A text such as `training.digits.epochs=5` has the effect of the same value in params.yaml."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from fractal_model.common.errors import FractalError
from fractal_model.common.fingerprint import fingerprint
from fractal_model.config.params import load_params
from tests.support import REPOSITORY
from tests.support.params import SHIPPED, shipped_text


@pytest.mark.parametrize(
    ("line", "edited", "override"),
    [
        ("    epochs: 22\n", "    epochs: 5\n", "training.digits.epochs=5"),
        ("widths: [128, 64, 32]", "widths: [96, 48, 24]", "models.digits.widths=[96, 48, 24]"),
        ("    register: last", "    register: best", "training.digits.register=best"),
        ("  data: data ", "  data: sub/data ", "paths.data=sub/data"),
        ("CPU: 1} # by", "CPU: 1, GPU: 1} # by", "training.digits.resources_per_worker.GPU=1"),
        ("{digits: 200}", "{}", "metrics.statistics_images={}"),
    ],
)
def test_an_override_is_the_same_as_an_edited_file(tmp_path, line, edited, override):
    file, text = tmp_path / "params.yaml", shipped_text()
    assert line in text
    file.write_text(text)
    overridden, unchanged = load_params(file, [override]), load_params(file)
    file.write_text(
        text.replace(line, edited, 1) if edited else text.replace("{digits: 200}", "{}")
    )
    assert overridden == load_params(file) != unchanged
    prints = [fingerprint(p.size("digits")) for p in (overridden, load_params(file))]
    assert prints[0] == prints[1]


def test_an_override_changes_no_other_row_with_the_same_anchor():
    params, before = load_params(SHIPPED, ["training.ar-64.epochs=300"]), load_params(SHIPPED)
    assert params.training["ar-64"].epochs == 300
    assert {name for name in params.models if params.training[name] != before.training[name]} == {
        "ar-64"
    }


def test_the_last_of_several_overrides_wins_and_a_section_may_be_new():
    overrides = ["training.digits.seed=1", "sweep.mar-b.samples=77", "training.digits.seed=2"]
    params = load_params(SHIPPED, overrides)
    assert params.training["digits"].seed == 2 and params.sweep["mar-b"].samples == 77
    new = load_params(SHIPPED, ["paths.remote.imagenet64=s3://bucket/imagenet64"])
    assert new.dataset_folder("imagenet64") == "s3://bucket/imagenet64"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.digits.epoch=5"], ["training.digits.epoch=5: unknown", "mean 'epochs'?"]),
        (["training.digitz.epochs=5"], ["unknown key 'training.digitz', did you mean 'digits'?"]),
        (["trainning.digits.epochs=5"], ["unknown key 'trainning', did you mean 'training'?"]),
        (["training.digits.regster=best"], ["did you mean 'register'?"]),
        (["training.digits.epochs=0"], ["greater than or equal to 1, found 0"]),
        (
            ["training.digits.epochs=null"],
            ["epochs: expected an integer, found null"],
        ),
        (["training.digits.epochs=2.5"], ["expected an integer, found 2.5"]),
        (["training.digits.epochs=many"], ["expected an integer, found 'many'"]),
        (["training.digits.clip_norm=high"], ["expected a number, found 'high'"]),
        (["paths.data=null"], ["paths.data: expected a path, found null"]),
        (["training.digits.flip=maybe"], ["flip: expected true or false, found 'maybe'"]),
        (["training.digits.betas=3"], ["betas: expected a list, found 3"]),
        (["training.digits.dataset={a: 1}"], ["expected a text, found keys with values"]),
        (["training.digits.weight_decay=[1]"], ["expected a number, found a list"]),
        (["training.digits=5"], ["training.digits: expected keys with values, found 5"]),
        (["training.digits.epochs=022"], ["epochs=022: column 1: '022' is ambiguous"]),
        (["training.digits.betas=[1,2"], ["betas=[1,2: column 5: while parsing"]),
        (["training.digits.epochs.x=5"], ["training.digits.epochs: expected an integer, found"]),
        (["training.digits.epochs"], ["'training.digits.epochs' sets nothing: give a key and"]),
        (["=5"], ["'=5' sets nothing"]),
        (["training..epochs=5"], ["sets nothing"]),
        (["a" * 9999 + "=1"], ["aaa…aaa", "known are paths, pipeline"]),
        ([".".join("a" * 9999) + "=1"], ["sets nothing"]),
        (["paths.outputs=~nobody-here/x"], ["a path cannot be used"]),
        (
            ["training.digits.seed=3", "training.digits.batch_size=33"],
            ["training.digits.batch_size=33: training.digits: batch_size 33 does not divide"],
        ),
        (
            ["training.digits.epochs=0", "training.digits.seed=-1"],
            ["training.digits.epochs=0, training.digits.seed=-1: training.digits.epochs: "],
        ),
    ],
)
def test_a_mistake_names_the_override_and_the_way_out(overrides, words):
    with pytest.raises(FractalError) as raised:
        load_params(SHIPPED, overrides)
    text = str(raised.value)
    assert raised.value.setting == "set" and "\n" not in text and len(text) < 2001
    assert str(SHIPPED) not in text
    assert all(word in text for word in words), text


def test_a_mistake_in_the_file_names_the_file(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text(re.sub("epochs: 22", "epochs: 0", shipped_text()))
    with pytest.raises(FractalError, match="digits.epochs: Input should be") as raised:
        load_params(file, ["training.digits.seed=3"])
    assert str(raised.value).startswith(f"{file}: ") and raised.value.setting == ""
    assert load_params(file, ["training.digits.epochs=9"]).training["digits"].epochs == 9
    file.write_text("just text")
    with pytest.raises(FractalError, match=r"params\.yaml: expected keys with values"):
        load_params(file, ["training.digits.seed=3"])


@pytest.mark.parametrize(
    ("value", "expected"), [("elsewhere.yaml", "elsewhere.yaml"), ("", "params.yaml")]
)
def test_a_variable_names_the_settings_file(value, expected):
    code = "from fractal_model.config.params import DEFAULT_FILE; print(DEFAULT_FILE)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"FRACTAL_PARAMS": value, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == (value or "params.yaml")
