"""The rounds of a discriminative fine-tuning continue where they were stopped."""

from __future__ import annotations

import copy

import pytest

from fractal_model.checkpoints.checkpoint import load_checkpoint
from fractal_model.common.errors import FractalError
from fractal_model.model.weights import weights_checksum
from fractal_model.training.ddo_rounds import Tuning, require_known_classes, tuning_fingerprint
from fractal_model.training.start import Start
from tests.support.tuning import SETTINGS, digits_split, tiny_ar_size, trained_model

SIZE = tiny_ar_size()
SIZE = SIZE.model_copy(update={"training": SIZE.training.model_copy(update={"ema_decays": (0.5,)})})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def split(data):
    return digits_split(data)


@pytest.fixture
def model(split, data):
    return copy.deepcopy(trained_model(data))


def tuning(split, folder) -> Tuning:
    return Tuning(SIZE, SETTINGS, split, "f" * 64, folder)


def start(new_classes: int = 0, checksum: str = "c") -> Start:
    return Start("a model", "s", None, checksum, 10, new_classes, None)


class Killed(Exception):
    pass


def ignore(*_: object) -> None:
    pass


def test_a_tuning_that_is_stopped_in_round_2_ends_with_the_same_weights(split, model, tmp_path):
    whole = tuning(split, tmp_path / "whole")
    expected = whole.run(copy.deepcopy(model), ignore, ignore)
    assert whole.steps == 20

    def kill(number, step):
        if number == 2 and step.position == 3 * 16:
            raise Killed

    broken, drawn, taken = tuning(split, tmp_path / "broken"), [], []
    with pytest.raises(Killed):
        broken.run(copy.deepcopy(model), ignore, kill)
    parts = list((tmp_path / "broken" / "round-2-samples").glob("*.safetensors"))
    times = {part: part.stat().st_mtime_ns for part in parts}
    assert parts

    def note(number, step):
        if not taken:
            assert {part: part.stat().st_mtime_ns for part in parts} == times  # None drawn again.
        taken.append(number)

    last = broken.run(model, lambda number, *_: drawn.append(number), note)
    assert taken == [2] * 10 and set(drawn) == {2}
    ours, theirs = (load_checkpoint(folder) for folder in (last, expected))
    for weights in (None, "ema"):
        assert weights_checksum(ours.build_model(weights)) == weights_checksum(
            theirs.build_model(weights)
        )
    assert ours.progress == theirs.progress
    assert (ours.progress.position, ours.progress.steps) == (320, 20)
    assert ours.optimizer is None and ours.serving == SIZE.serving
    assert not (tmp_path / "broken" / "round-2-samples").exists()


def test_the_fingerprint_covers_settings_recipe_data_and_weights(split):
    def of(size=SIZE, settings=SETTINGS, first=None) -> str:
        return tuning_fingerprint(size, settings, split.manifest, first or start())

    recipe = SIZE.training
    others = [
        of(settings=SETTINGS.model_copy(update={"beta": 0.3})),
        of(settings=SETTINGS.model_copy(update={"rounds": 3})),
        of(SIZE.model_copy(update={"training": recipe.model_copy(update={"seed": 1})})),
        of(first=start(checksum="d")),
    ]
    assert len({of(), *others}) == 5
    operational = recipe.model_copy(update={"log_every_steps": 7, "workers": 1, "min_workers": 1})
    assert of(SIZE.model_copy(update={"training": operational})) == of()


def test_a_model_that_lacks_a_class_is_refused():
    require_known_classes(start())
    with pytest.raises(FractalError, match="does not know 3 of the data set's 10 classes"):
        require_known_classes(start(new_classes=3))
