"""The model that a training starts from: its version in the registry, and the tags of the run."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from fractal_model.common.errors import FractalError
from fractal_model.config.params import Size, load_params
from fractal_model.tracking import registry, runs
from fractal_model.tracking.model_source import pin_version
from fractal_model.tracking.registry import NamedVersion, find_version
from fractal_model.tracking.tags import TRAINING_RUN_TAG
from tests.support.mlflow_server import SIZE
from tests.support.params import SHIPPED
from tests.support.protocols import manifest

NAME = f"fractal-{SIZE}"
START = {
    "fractal.start_from": f"models:/{NAME}@champion#ema",
    "fractal.start_sha256": "c" * 64,
    "fractal.parent_version": f"{NAME}/3",
    "fractal.parent_run": "abc",
}


def test_an_alias_is_replaced_by_the_version_that_it_points_to_now(new_version, tmp_path):
    first, second = new_version(), new_version()
    registry.tag_version(SIZE, first, TRAINING_RUN_TAG, "abc")
    for number, run in ((first, "abc"), (second, None)):
        registry.set_alias(SIZE, "champion", number)
        for source in (f"models:/{NAME}@champion#ema", f"models:/{NAME}/{number}#ema"):
            pinned, version = pin_version(source, tmp_path / "outputs")
            assert pinned == f"models:/{NAME}/{number}#ema"
            assert version == NamedVersion(NAME, number, run)


def test_a_folder_is_no_version(tmp_path):
    assert pin_version(f"{tmp_path}#ema", tmp_path) == (f"{tmp_path}#ema", None)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (f"{NAME}/7", "has no version"),
        (f"{NAME}@none", "has no version"),
        (f"{NAME}/latest", "has no version"),
        ("fractal-other@champion", "has no version"),
        (NAME, "names no registered version"),
        (f"{NAME}@", "names no registered version"),
        ("@champion", "names no registered version"),
    ],
)
def test_an_address_without_a_version_is_refused(new_version, target, words):
    new_version()
    with pytest.raises(FractalError, match=f"{words}.*models:/"):
        find_version(f"models:/{target}")


def test_the_way_to_a_champion_is_named(new_version):
    new_version()
    with pytest.raises(FractalError, match="evaluate a version, which makes it champion; check"):
        find_version(f"models:/{NAME}@champion")


@pytest.fixture
def size() -> Size:
    return load_params(SHIPPED).size("digits")


def train_once(size: Size, outputs: Path, start_tags: dict[str, str]) -> mlflow.entities.Run:
    """Begin or continue the run of one fingerprint; return it as it is stored afterwards."""
    with runs.training_run(size, manifest(), "f" * 64, outputs, start_tags) as run_id:
        pass
    return mlflow.get_run(run_id)


def test_a_training_run_names_and_links_to_its_parent(local_store, size, tmp_path):
    run = train_once(size, tmp_path / "outputs", START)
    assert START.items() <= run.data.tags.items()
    note = run.data.tags["mlflow.note.content"]
    assert f"[{NAME} version 3](#/models/{NAME}/versions/3)" in note
    assert "[this run](#/runs/abc)" in note


def test_a_continued_run_keeps_its_first_parent(local_store, size, tmp_path):
    """A run can be continued from its own copy of the weights, which is no registered version."""
    first = train_once(size, tmp_path / "outputs", START)
    copy = {"fractal.start_from": "outputs/training/run/start", "fractal.start_sha256": "d" * 64}
    again = train_once(size, tmp_path / "outputs", copy)
    assert again.info.run_id == first.info.run_id
    assert START.items() <= again.data.tags.items()
    assert again.data.tags["mlflow.note.content"] == first.data.tags["mlflow.note.content"]


def test_a_run_from_random_weights_has_no_parent(local_store, size, tmp_path):
    run = train_once(size, tmp_path / "outputs", {})
    assert not START.keys() & run.data.tags.keys()
    assert "started from" not in run.data.tags["mlflow.note.content"]
