"""OpenMoji's pictures: fixed counts of each class, no near copies on both sides, fixed bytes."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from fractal_model.config.data import PreparationConfig
from fractal_model.data.decoding import UnusableImage
from fractal_model.data.manifest import Manifest
from fractal_model.data.preparation import prepare_source
from fractal_model.data.prepared import open_prepared
from fractal_model.data.shard_job import build_in_processes
from fractal_model.data.sources.listing import Listing
from fractal_model.data.sources.openmoji import (
    ATTRIBUTION,
    base_of,
    list_openmoji,
    openmoji_folder,
    rasterise,
)
from fractal_model.data.sources.registered import register
from tests.support.listings import assert_refused
from tests.support.preparing import contents

COUNTS = {  # class: training images, validation images
    "activities": (77, 8),
    "animals": (138, 15),
    "flags": (243, 26),
    "food": (122, 13),
    "objects": (236, 26),
    "people": (681, 75),
    "smileys": (152, 16),
    "symbols": (201, 22),
    "travel": (197, 21),
}


@cache
def listing() -> Listing:
    return list_openmoji(openmoji_folder(), lambda done: None).build()


def build(data: Path, processes: int) -> Manifest:
    register(openmoji_folder(), data, name="openmoji")
    return prepare_source(
        data,
        "openmoji64",
        source="openmoji",
        resolution=64,
        settings=PreparationConfig(max_quarantined_share=0.0, processes=processes),
        run_jobs=lambda jobs: build_in_processes(jobs, processes),
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Manifest]:
    """The folder of the prepared data set, and its manifest."""
    data = tmp_path_factory.mktemp("openmoji") / "data"
    manifest = build(data, processes=1)
    return data / "openmoji64", manifest


def test_no_class_is_more_than_a_third():
    labels = listing().images["label"].to_numpy()
    assert np.bincount(labels).max() <= len(labels) / 3
    assert len(labels) == sum(map(sum, COUNTS.values())) and not listing().refused


def test_variants_of_a_picture_stand_on_one_side():
    images = listing().images.to_pandas()
    bases = images["file"].map(lambda file: base_of(Path(file).stem))
    assert images.groupby(bases)["split"].nunique().max() == 1
    people = images[images["key"].str.startswith("people/")]
    assert people.groupby(bases).size().between(1, 6).all(), "they are thinned evenly"


def test_no_picture_looks_like_one_of_the_other_side(built):
    train, validation = (open_prepared(built[0], split) for split in ("train", "validation"))
    known, held_out = (
        np.stack([example.image.numpy().ravel() for example in split]).astype(np.float32) / 255
        for split in (train, validation)
    )
    squares = np.square(held_out).sum(1)[:, None] + np.square(known).sum(1)
    differences = (squares - 2 * held_out @ known.T) / known.shape[1]
    labels = validation.labels()[differences.min(axis=1) < 1e-3]
    copies = [validation.class_names[label] for label in labels]
    assert copies == ["symbols"], "the yellow circle looks like the full moon, of another class"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1F44B", "1F44B-1F3FD"),  # a hand
        ("1F9D1-200D-1F680", "1F469-1F3FF-200D-1F680"),  # an astronaut
        ("1F3C3-200D-2640-FE0F", "1F3C3-1F3FB"),  # somebody who runs
        ("1F468-200D-1F9B0", "1F471-1F3FC-200D-2640-FE0F"),  # somebody with red and with blond hair
        ("1F46A", "1F468-200D-1F469-200D-1F467-200D-1F466"),  # a family
        ("1F491", "1F469-1F3FB-200D-2764-FE0F-200D-1F468-1F3FD"),  # a couple
        ("1F1EB-1F1F7", "1F1F2-1F1EB"),  # the flags of France and Saint Martin
        ("270D-FE0F", "270D-1F3FB"),  # a hand that writes
    ],
)
def test_near_copies_have_one_base(one, other):
    assert base_of(one) == base_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1F468-200D-1F680", "1F468-200D-1F692"),  # an astronaut and a firefighter
        ("1F1EB-1F1F7", "1F1EE-1F1F9"),  # the flags of France and Italy
        ("1F600", "1F601"),
        ("1F9D1", "1F9D2"),  # an adult and a child
    ],
)
def test_other_pictures_have_other_bases(one, other):
    assert base_of(one) != base_of(other)


def test_two_builds_have_the_same_bytes_and_name_the_licence(built, tmp_path):
    folder, manifest = built
    assert build(tmp_path / "data", processes=2) == manifest
    assert contents(tmp_path / "data/openmoji64") == contents(folder)
    assert (tmp_path / "data/registered.yaml").read_text() == (
        folder.parent / "registered.yaml"
    ).read_text()
    assert manifest.resolution == 64 and not manifest.quarantined
    assert "CC BY-SA 4.0" in ATTRIBUTION and ATTRIBUTION in manifest.source
    assert "drawn by resvg" in manifest.preprocessing and "on white" in manifest.preprocessing
    counts = [manifest.splits[split].images_per_class for split in ("train", "validation")]
    assert dict(zip(manifest.class_names, zip(*counts, strict=True), strict=True)) == COUNTS
    corners = np.stack(
        [example.image[:, 0, 0].numpy() for example in open_prepared(folder, "train")]
    )
    assert (corners == 255).all(axis=1).mean() > 0.9


def test_another_folder_of_that_name_is_refused(tmp_path):
    (tmp_path / "raw/roses").mkdir(parents=True)
    (tmp_path / "raw/roses/1.png").touch()
    assert_refused(
        lambda: register(tmp_path / "raw", tmp_path / "data", name="openmoji"),
        "raw has no pictures of OpenMoji.*run `fractal data register openmoji`",
    )
    assert_refused(
        lambda: register(openmoji_folder(), tmp_path / "data", name="openmoji", holdout=0.1),
        "OpenMoji, which has validation images of its own: use no holdout",
    )


@pytest.mark.parametrize("content", [b"<html>", b"\xff\xfe", b"<svg"])
def test_a_damaged_drawing_is_unusable(content):
    with pytest.raises(UnusableImage, match="^no SVG picture"):
        rasterise(content, 16)
