"""Data sets of the Hugging Face hub: their features and splits, the cache, and what is refused.

The loader is the real one. It loads data sets from folders, because tests reach no network.
"""

import os
import shutil
from pathlib import Path

import datasets
import huggingface_hub.constants
import pyarrow.parquet as pq
import pytest

from fractal_model.data.prepared import open_prepared
from fractal_model.data.sources.registered import load_source, register
from tests.support import mini_imagenet as mini
from tests.support.listings import assert_refused, contents
from tests.support.preparing import expected_crop, prepare

OWN = {"name": "own", "resolutions": (16,)}
HELD = {**OWN, "holdout": 0.5}
IMAGES = [mini.encode(mini.photograph(seed), "PNG") for seed in range(6)]
LABELS = [1, 0, 1, 0, 1, 0]
ANIMALS = datasets.ClassLabel(names=["owl", "bee"])


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("FRACTAL_CACHE", str(tmp_path / "cache"))


def write(root: Path, features: dict, *columns: list, splits=("train", "validation")) -> str:
    """Write a data set as the hub stores it: a folder of parquet files."""
    names = ["pixels", *features]
    values = [[{"bytes": image, "path": f"{number}.png"} for number, image in enumerate(IMAGES)]]
    rows = dict(zip(names, [*values, *columns], strict=True))
    kinds = datasets.Features({"pixels": datasets.Image(), **features})
    for split in splits:
        (root / "data").mkdir(parents=True, exist_ok=True)
        dataset = datasets.Dataset.from_dict(rows, features=kinds)
        dataset.to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    return f"hub:{root}"


def test_features_are_found_by_their_type(tmp_path):
    number = datasets.Value("int64")
    features = {"label": number, "animal": ANIMALS}
    place = write(tmp_path / "raw", features, [0] * 6, LABELS, splits=("train", "valid", "test"))
    source, listing = register(place, tmp_path / "data", **OWN)
    assert source.kind == "hub" and source.images == {"train": 6, "validation": 6}
    assert source.class_names == ("owl", "bee"), "the order of the data set"
    root = load_source(tmp_path / "data", "own")[1]
    assert contents(root, listing)["train", 0] == IMAGES[1::2]
    prepare(tmp_path / "data", source="own")
    images = open_prepared(tmp_path / "data/imagenet16", "train").in_order()
    for example, label, content in zip(images, LABELS, IMAGES, strict=True):
        assert example.label == label
        assert (example.image.permute(1, 2, 0).numpy() == expected_crop(content)).all()


def test_the_fingerprint_is_that_of_the_images(tmp_path):
    """It depends neither on the place nor on how the hub stores the images."""
    checksums = set()
    for name, group in (("one", 1000), ("two", 2)):
        place = write(tmp_path / name, {"animal": ANIMALS}, LABELS, splits=["train"])
        file = tmp_path / name / "data/train-00000-of-00001.parquet"
        datasets.Dataset.from_parquet(str(file)).to_parquet(file, batch_size=group)
        checksums.add(register(place, tmp_path / name / "out", **HELD)[0].listing_checksum)
    assert len(checksums) == 1
    IMAGES.reverse()
    try:
        place = write(tmp_path / "three", {"animal": ANIMALS}, LABELS, splits=["train"])
    finally:
        IMAGES.reverse()
    checksums.add(register(place, tmp_path / "three/out", **HELD)[0].listing_checksum)
    assert len(checksums) == 2


def test_an_image_folder_of_the_hub_is_read(tmp_path):
    """Its images are files, and its classes are folders."""
    for number, content in enumerate(IMAGES):
        mini.put(tmp_path / f"raw/train/{'ab'[number % 2]}/{number}.PNG", content)
    source, listing = register(f"hub:{tmp_path / 'raw'}", tmp_path / "data", **HELD)
    assert source.class_names == ("a", "b") and sum(source.images.values()) == 6
    root = load_source(tmp_path / "data", "own")[1]
    images = contents(root, listing)
    assert sorted(images["train", 0] + images["validation", 0]) == sorted(IMAGES[::2])


def test_texts_are_classes_and_without_label_all_images_are_one_class(tmp_path):
    text = datasets.Value("string")
    names = ["b", "a", "b", "a", "b", None]
    place = write(tmp_path / "raw", {"Label": text, "note": text}, names, names)
    source, listing = register(place, tmp_path / "data", **OWN)
    assert source.class_names == ("a", "b") and source.refused == 2
    assert {entry.reason for entry in listing.refused} == {"it has no label"}
    place = write(tmp_path / "plain", {"note": text}, names)
    assert register(place, tmp_path / "new", **OWN)[0].class_names == ("own",)
    chosen = register(place, tmp_path / "chosen", **OWN, label="note")[0]
    assert chosen.class_names == ("a", "b") and chosen.label == "note"


def test_images_that_cannot_be_used_are_refused(tmp_path, monkeypatch):
    largest = max(map(len, IMAGES)) - 1
    monkeypatch.setattr("fractal_model.data.sources.listing.LARGEST_IMAGE", largest)
    place = write(tmp_path / "raw", {"animal": ANIMALS}, [*LABELS[:5], -1], splits=["train"])
    _, listing = register(place, tmp_path / "data", **HELD)
    too_large = [number for number, image in enumerate(IMAGES) if len(image) > largest]
    reason = f"it has {largest + 1:,} bytes, at most {largest:,} are read as an image"
    assert {entry.file.rpartition("/")[2]: entry.reason for entry in listing.refused} == {
        **{f"{number:08d}.png": reason for number in too_large},
        "00000005.png": "it has no label",
    }


def test_an_emptied_cache_is_filled_again(tmp_path):
    place = write(tmp_path / "raw", {"animal": ANIMALS}, LABELS)
    _, listing = register(place, tmp_path / "data", **OWN)
    shutil.rmtree(tmp_path / "cache")
    _, root, again = load_source(tmp_path / "data", "own")
    assert again.checksum == listing.checksum
    assert contents(root, again)["train", 1] == IMAGES[::2]


def test_sources_of_one_data_set_share_its_images(tmp_path):
    features = {"animal": ANIMALS, "colour": ANIMALS}
    place = write(tmp_path / "raw", features, [-1, *LABELS[1:]], LABELS)
    _, listing = register(place, tmp_path / "one", **OWN, label="colour")
    register(place, tmp_path / "two", **OWN, label="animal")
    root = load_source(tmp_path / "one", "own")[1]
    assert contents(root, listing)["train", 1] == IMAGES[::2]


def test_a_cache_of_other_images_is_not_used(tmp_path):
    """Another project has registered a newer revision of the data set."""
    place = write(tmp_path / "raw", {"animal": ANIMALS}, LABELS)
    register(place, tmp_path / "data", **OWN)
    root = load_source(tmp_path / "data", "own")[1]
    content = (root / "train.tar").read_bytes()
    (root / "train.tar").write_bytes(bytes(len(content)))
    load_source(tmp_path / "data", "own")
    assert (root / "train.tar").read_bytes() == content
    write(tmp_path / "raw", {"animal": ANIMALS}, LABELS[::-1])
    register(place, tmp_path / "other", **OWN)
    load_source(tmp_path / "data", "own")
    (root / "validation.tar").unlink()
    message = "has other images than when 'own' was registered"
    assert_refused(lambda: load_source(tmp_path / "data", "own"), message)


def test_a_row_may_have_no_image(tmp_path):
    """The pipe is a file that never ends to read; the data set has only its path."""
    os.mkfifo(tmp_path / "pipe.png")
    rows = [None, {"path": str(tmp_path / "pipe.png")}, {"path": "0.png"}, {"path": "a\0.png"}]
    rows += [{"bytes": image} for image in IMAGES]
    kinds = datasets.Features({"pixels": datasets.Image()})
    (tmp_path / "raw").mkdir()
    table = datasets.Dataset.from_dict({"pixels": rows}, features=kinds).data.table
    pq.write_table(table, tmp_path / "raw/train.parquet")
    source, listing = register(f"hub:{tmp_path / 'raw'}", tmp_path / "data", **HELD)
    assert sum(source.images.values()) == len(IMAGES)
    assert [entry.reason for entry in listing.refused] == [
        "the file is empty",
        *["its file cannot be read"] * 3,
    ]


def test_a_name_that_does_not_exist_is_an_error(tmp_path):
    message = "hub:no-one/no-such-pictures cannot be loaded .*: check its name and the network, or"
    assert_refused(lambda: register("hub:no-one/no-such-pictures", tmp_path, **OWN), message)
    assert_refused(lambda: register("hub:", tmp_path, **OWN), "hub: is followed by no name")
    assert_refused(lambda: register("hub:a\nb", tmp_path, **OWN), r"hub:a\\nb is not UTF-8 or has")
    assert not (tmp_path / "sources").exists()


def test_two_label_features_are_an_error_until_one_is_chosen(tmp_path):
    colours = datasets.ClassLabel(names=["red", "green"])
    features = {"animal": ANIMALS, "colour": colours}
    place = write(tmp_path / "raw", features, LABELS, LABELS)
    message = r"has 2 label features \(animal, colour\), expected one: choose it, for example ani"
    assert_refused(lambda: register(place, tmp_path / "data", **OWN), message)
    source, _ = register(place, tmp_path / "data", **OWN, label="colour")
    assert source.class_names == ("red", "green")
    for label in ("kind", "pixels"):
        assert_refused(
            lambda name=label: register(place, tmp_path / "data", **OWN, label=name),
            f"has no label '{label}', its features are pixels, animal, colour",
        )


def test_a_data_set_without_one_image_feature_is_an_error(tmp_path):
    file = tmp_path / "raw/train.csv"
    mini.put(file, b"a,b\n1,2\n")
    message = "has 0 image features in a, b, expected one: write its pictures to a folder"
    assert_refused(lambda: register(f"hub:{tmp_path / 'raw'}", tmp_path / "data", **OWN), message)


def test_a_data_set_without_training_images_is_an_error(tmp_path):
    place = write(tmp_path / "raw", {"animal": ANIMALS}, LABELS, splits=["test"])
    message = "has the splits test, expected train"
    assert_refused(lambda: register(place, tmp_path / "data", **OWN), message)


def test_nothing_is_held_out_beside_validation_images(tmp_path):
    place = write(tmp_path / "raw", {"animal": ANIMALS}, LABELS)
    message = "0.5 of the images are to be held out, but hub:.* is hub, which has validation images"
    assert_refused(lambda: register(place, tmp_path / "data", **HELD), message)
