"""A model and a data set with different classes: metrics that use classes are absent."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fractal_model.common.errors import FractalError
from fractal_model.data.prepared import open_prepared
from fractal_model.evaluation.held_out_likelihood import held_out_likelihood
from fractal_model.evaluation.measure_likelihood import measure_likelihood
from fractal_model.evaluation.same_classes import class_mismatch
from fractal_model.evaluation.sample_metrics import class_agreement
from fractal_model.metrics.names import CLASS_AGREEMENT, CONDITIONAL_NLL, NLL, error_name
from fractal_model.model.fractal import FractalModel
from tests.support import tiny_config
from tests.support.tiny_files import save_images

SAME, OTHERS = None, ("x", "y", "z", "w")


@pytest.fixture
def split(tmp_path):
    return open_prepared(save_images(tmp_path / "noise"), "validation")


def _config(split, names: tuple[str, ...] | None):
    class_names = split.manifest.class_names if names is SAME else names
    config = tiny_config("mar", num_classes=len(split.manifest.class_names))
    return config.model_copy(update={"class_names": class_names[: config.num_classes]})


def test_classes_are_compared_by_name_or_without_names_by_number(split):
    manifest = split.manifest
    assert class_mismatch(_config(split, SAME), manifest) == ""
    assert class_mismatch(_config(split, ()), manifest) == ""
    backwards = tuple(reversed(manifest.class_names))
    for names in (OTHERS, backwards):
        assert "are not the" in class_mismatch(_config(split, names), manifest)
    assert class_mismatch(tiny_config("mar", num_classes=77), manifest)


def test_class_agreement_and_conditional_likelihood_are_absent_with_the_same_reason(
    split, tmp_path
):
    model = FractalModel(_config(split, OTHERS)).eval()
    reason = class_mismatch(model.config, split.manifest)
    images, labels = split.load_all()
    samples = SimpleNamespace(labels=labels, images=lambda numbers: images[list(numbers)])
    agreement = class_agreement(samples, split, model.config)
    assert (agreement.values, agreement.absent) == ({}, {CLASS_AGREEMENT: reason})
    source = SimpleNamespace(likelihood_passes=1, seed=0)
    results = held_out_likelihood(
        model, split, source, tmp_path / "parts", lambda done: None, largest=100
    ).results
    names = {CONDITIONAL_NLL, error_name(CONDITIONAL_NLL)}
    assert results.absent == dict.fromkeys(names, reason)
    assert results.values.keys() == {NLL, error_name(NLL)}
    with pytest.raises(FractalError, match="are not the"):
        measure_likelihood(model, split, lambda done: None, passes=1, seed=0, conditional=True)


@pytest.mark.parametrize("names", [SAME, ()])
def test_class_agreement_of_the_same_classes_is_a_number(split, names):
    images, labels = split.load_all()
    samples = SimpleNamespace(labels=labels, images=lambda numbers: images[list(numbers)])
    results = class_agreement(samples, split, _config(split, names))
    without_model = class_agreement(samples, split, None)
    assert results.values == without_model.values
    assert 0 <= results.values[CLASS_AGREEMENT] <= 1 and results.absent == {}
