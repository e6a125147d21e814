"""The checkpoint with the fewest held-out bits per dimension is copied beside the last ones."""

import json
import math
from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem
from ray.train import Checkpoint

from fractal_model.training.ray_train.best import best_checkpoint, keep_best

STORE = LocalFileSystem()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for number in (1, 2, 3):
        (tmp_path / f"checkpoint_{number}").mkdir()
        (tmp_path / f"checkpoint_{number}" / "weights").write_text(str(number))
    return tmp_path


def keep(run: Path, number: int, bits: float) -> None:
    keep_best(STORE, str(run), Checkpoint.from_directory(run / f"checkpoint_{number}"), bits)


def test_only_a_better_checkpoint_replaces_the_best(run):
    for number, bits, best in [(1, 3.0, 1), (2, 1.0, 2), (3, 2.0, 2), (3, 1.0, 2)]:
        keep(run, number, bits)
        (folder,) = (run / "best").iterdir()
        assert folder.name == f"checkpoint_{best}"
        assert (folder / "weights").read_text() == str(best)
    assert best_checkpoint(STORE, str(run)) == ("best/checkpoint_2", 1.0)


def test_bits_that_are_not_a_number_are_never_the_best(run):
    keep(run, 1, math.nan)
    assert best_checkpoint(STORE, str(run)) == (None, math.inf)
    keep(run, 2, 3.0)
    keep(run, 3, math.nan)
    assert best_checkpoint(STORE, str(run)) == ("best/checkpoint_2", 3.0)


@pytest.mark.parametrize("content", [None, "", "[]", json.dumps({"checkpoint": "x", "loss": 0.1})])
def test_no_score_or_one_of_an_earlier_version_is_no_best(run, content):
    if content is not None:
        (run / "best.json").write_text(content)
    assert best_checkpoint(STORE, str(run)) == (None, math.inf)
    keep(run, 1, 3.0)
    assert best_checkpoint(STORE, str(run)) == ("best/checkpoint_1", 3.0)
