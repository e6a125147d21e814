"""The file of a study is read strictly, and every mistake ends in one line."""

from __future__ import annotations

import pytest
import yaml

from fractal_model.common.errors import FractalError
from fractal_model.studies.study_file import find_study, read_study

CONTENT = {
    "question": "Which one?",
    "size": "digits",
    "set": ["training.digits.epochs=4"],
    "variants": {"a": ["training.digits.seed=9"]},
    "seeds": [0, 1, 2],
}


def read(folder, **changes):
    content = {**CONTENT, **changes}
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    return read_study(file)


def test_a_variant_has_its_settings_after_the_shared_ones(tmp_path):
    shared, held_out = "training.digits.epochs=4", "training.digits.holdout=0.1"
    assert read(tmp_path).recipes == {
        "base": (shared, held_out),
        "a": (shared, "training.digits.seed=9", held_out),
    }


def test_the_validation_images_are_a_choice(tmp_path):
    recipes = read(tmp_path, held_out="validation", variants=None, set=None).recipes
    assert recipes == {"base": ("training.digits.holdout=0",)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {"base": ["a=1"]}}, "variants has 'base': give its settings under set"),
        ({"other_images": ["b"]}, "other_images names 'b', which is no variant"),
        ({"guides": {"b": "a"}}, "guides names 'b', which is no variant"),
        ({"guides": {"a": "b"}}, "guides names 'b', which is no variant"),
        ({"guides": {"a": "a"}}, "guides names 'a' as a guide, which is guided or tuned itself"),
        ({"guides": {"a": "base"}}, "guides change samples alone, but no metric is one of samples"),
        ({"tuned": {"base": "ema"}}, "tuned names 'base', which is no variant"),
        ({"tuned": {"a": "average"}}, "tuned.a: 'average' names no weights"),
        ({"seeds": [0, 1, 1]}, "a seed occurs twice"),
        ({"seeds": [0, 1]}, "at least 3 items"),
        ({"seeds": [0, 1, True]}, "not true or false"),
        ({"metrics": ["loss"]}, "metrics.0: .*found 'loss'"),
        ({"held_out": 0.9}, "held_out"),
        ({"held_out": "train"}, "held_out"),
        ({"variants": {"a b": ["a=1"]}}, "should match pattern"),
        ({"variant": {}}, "unknown key 'variant', did you mean 'variants'"),
        ({"question": None}, "'question' is missing"),
    ],
)
def test_mistakes_are_explained(tmp_path, changes, message):
    with pytest.raises(FractalError, match=message) as raised:
        read(tmp_path, **changes)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_yaml_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_text("size: digits\nsize: other\n")
    with pytest.raises(FractalError, match=r"x.yaml: .*size"):
        read_study(tmp_path / "x.yaml")


def test_a_study_is_found_by_name_or_path(tmp_path):
    file = tmp_path / "docs" / "studies" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.touch()
    assert find_study("mine", tmp_path) == find_study(str(file), tmp_path / "x") == file
    with pytest.raises(FractalError, match="there is no study .*other.yaml: choose mine"):
        find_study("other", tmp_path)
    with pytest.raises(FractalError, match="write it first"):
        find_study("other", tmp_path / "x")
