"""Registering every form of ImageNet and other folders, and what is refused."""

import json
import os
import shutil
from pathlib import Path

import pytest

from fractal_model.data.sources.class_names import unique_names
from fractal_model.data.sources.listing import Listing, ListingBuilder
from fractal_model.data.sources.registered import load_source, read_registered, register
from tests.support import mini_imagenet as mini
from tests.support.listings import assert_refused, contents, expected
from tests.support.preparing import prepare

NAMES = ("tench", "crane (n02012849)", "crane (n03126707)")


@pytest.mark.parametrize("form", mini.FORMS)
def test_each_form_has_the_same_images(tmp_path, form):
    root = mini.FORMS[form](tmp_path / "raw")
    source, listing = register(root, tmp_path / "data")
    assert contents(root, listing) == expected()
    assert source.images == {"train": 27, "validation": 6} and source.classes == 3
    assert source.refused == 0 and "997 of 1000 classes" in source.missing
    names = NAMES if form != "parquet" else ("tench", "crane (0001)", "crane (0002)")
    assert listing.class_names == names


def test_a_flat_validation_folder_is_read_with_the_ground_truth(tmp_path):
    root = mini.write_tree(tmp_path / "raw", flat=True)
    _, listing = register(root, tmp_path / "data")
    assert contents(root, listing) == expected()


def test_the_layout_of_kaggle_is_read(tmp_path):
    mini.write_tree(tmp_path / "tree", flat=True)
    root = tmp_path / "raw"
    shutil.copytree(tmp_path / "tree" / "train", root / "ILSVRC/Data/CLS-LOC/train")
    shutil.copytree(tmp_path / "tree" / "val", root / "ILSVRC/Data/CLS-LOC/val")
    mapping = "".join(f"{wnid} {words}\n" for wnid, words in mini.CLASSES.items())
    (root / "LOC_synset_mapping.txt").write_text(mapping)
    rows = [f"{Path(n).stem},{w} 1 2 3 4\n" for n, (w, _) in mini.validation_images().items()]
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(rows))
    _, listing = register(root, tmp_path / "data")
    assert contents(root, listing) == expected() and listing.class_names == NAMES


def test_registering_twice_writes_the_same_files(tmp_path):
    for place in ("one", "two"):
        mini.write_tree(tmp_path / place / "raw")
        register(tmp_path / place / "raw", tmp_path / place / "data")
    one, two = (tmp_path / place / "data" for place in ("one", "two"))
    for file in ("registered.yaml", "sources/imagenet.json"):
        assert (one / file).read_bytes() == (two / file).read_bytes()
    entries = read_registered(one)
    assert {name: entry.resolution for name, entry in entries.items()} == {
        "imagenet64": 64,
        "imagenet256": 256,
    }
    assert entries["imagenet64"].description == "data/sources/imagenet.json"


def test_a_missing_listing_is_made_again_and_compared_with_the_description(tmp_path):
    root = mini.write_tree(tmp_path / "raw")
    _, listing = register(root, tmp_path / "data")
    file = tmp_path / "data/sources/imagenet.listing.parquet"
    file.unlink()
    assert load_source(tmp_path / "data", "imagenet")[2].checksum == listing.checksum
    file.unlink()
    next((root / "train/n01440764").iterdir()).unlink()
    assert_refused(lambda: load_source(tmp_path / "data", "imagenet"), "has other images than when")
    register(root, tmp_path / "data")
    assert load_source(tmp_path / "data", "imagenet")[0].images["train"] == 26
    file.write_bytes(b"PAR1")
    assert_refused(
        lambda: load_source(tmp_path / "data", "imagenet"), "listing .* is damaged.*remove it"
    )


def test_a_listing_of_other_images_is_not_used(tmp_path):
    """`git pull` may bring a description of other images than those that were listed here."""
    root, data = mini.write_tree(tmp_path / "raw"), tmp_path / "data"
    register(root, data)
    older = (data / "sources/imagenet.json").read_text()
    image = next((root / "train/n01440764").iterdir())
    content = image.read_bytes()
    image.unlink()
    register(root, data)
    (data / "sources/imagenet.json").write_text(older)
    assert_refused(lambda: load_source(data, "imagenet"), "has other images than when .*or restore")
    image.write_bytes(content)
    source, _, listing = load_source(data, "imagenet")
    assert source.images["train"] == 27 and listing.count("train") == 27
    stored = Listing.read(data / "sources/imagenet.listing.parquet")
    assert stored.checksum == source.listing_checksum, "the right listing is stored"


def test_the_checksum_depends_on_every_column():
    rows = [("train", "a", "1.png", "a/1.png", -1, 5), ("train", "b", "2.png", "b/2.png", -1, 6)]

    def checksum(changed: dict[int, object]) -> str:
        builder = ListingBuilder({"a": "a", "b": "b"})
        builder.add(*[changed.get(place, value) for place, value in enumerate(rows[0])])
        builder.add(*rows[1])
        return builder.build().checksum

    changes = [{}, {0: "validation"}, {1: "b"}, {2: "3.png"}, {3: "a/3.png"}, {4: 0}, {5: 6}]
    checksums = [checksum(change) for change in changes]
    assert len(set(checksums)) == len(changes) and checksum({}) == checksums[0]


@pytest.mark.parametrize("name", ["sources", "digits", "x-report", "x-reference", "x-quarantined"])
def test_names_of_other_folders_are_refused(tmp_path, name):
    root = mini.write_tree(tmp_path / "raw")
    message = f"'{name}' (is taken by the|has an ending).*: choose another name"
    assert_refused(
        lambda: register(root, tmp_path / "data", name=name, resolutions=(8,), holdout=0.1), message
    )
    assert not (tmp_path / "data").exists()


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    """The folder may contain the raw images."""
    data = tmp_path / "data"
    mini.put(data / "flowers/rose/1.png", b"x")
    assert_refused(
        lambda: register(data / "flowers", data, name="flowers", resolutions=(8,), holdout=0.5),
        "data/flowers exists and is no prepared data set.*choose another name",
    )


def test_a_share_of_a_users_folder_is_held_out(tmp_path):
    for name in ("rose", "daisy"):
        for index in range(10):
            mini.put(tmp_path / "raw" / name / f"{index}.png", b"x")
    mini.put(tmp_path / "raw/README.txt", b"about")
    options = {"name": "flowers", "resolutions": (16, 32), "holdout": 0.2}
    source, listing = register(tmp_path / "raw", tmp_path / "data", **options)
    assert source.kind == "folder" and source.images == {"train": 16, "validation": 4}
    assert listing.class_names == ("daisy", "rose") and source.refused == 0
    labels = [image.label for image in listing.rows("validation", 0, 4)]
    assert labels == [0, 0, 1, 1], "each class has its share"
    assert register(tmp_path / "raw", tmp_path / "data", **options)[0] == source
    assert list(read_registered(tmp_path / "data")) == ["flowers16", "flowers32"]
    register(tmp_path / "raw", tmp_path / "data", **{**options, "resolutions": (64,)})
    assert list(read_registered(tmp_path / "data")) == ["flowers"], "registering again replaces"


def test_unusable_files_are_refused_with_a_reason(tmp_path):
    root = mini.write_tree(tmp_path / "raw")
    folder = root / "train/n01440764"
    (folder / "n01440764_0.JPEG").write_bytes(b"")
    mini.put(folder / "n02012849_77.JPEG", b"x")
    mini.put(folder / "notes.txt", b"x")
    mini.put(root / "train/cats/1.JPEG", b"x")
    mini.put(root / "val/ILSVRC2012_val_00000099.JPEG", b"x")
    os.symlink(tmp_path / "nowhere.JPEG", folder / "n01440764_88.JPEG")
    mini.put(tmp_path / "elsewhere.JPEG", mini.encode(mini.photograph(0)))
    os.symlink(tmp_path / "elsewhere.JPEG", folder / "n01440764_99.JPEG")
    source, listing = register(root, tmp_path / "data")
    assert {(entry.split, entry.file): entry.reason for entry in listing.refused} == {
        ("train", "n01440764/n01440764_0.JPEG"): "the file is empty",
        ("train", "n01440764/n02012849_77.JPEG"): (
            "its name says class n02012849, it is in n01440764"
        ),
        ("train", "n01440764/notes.txt"): "its name does not end like an image's",
        ("train", "n01440764/n01440764_88.JPEG"): "a link that leads nowhere",
        ("train", "cats/1.JPEG"): "its folder's name is no class such as n01440764",
        ("validation", "ILSVRC2012_val_00000099.JPEG"): (
            "the ground truth does not name its class"
        ),
    }
    assert source.refused == 6 and source.images["train"] == 27, "the working link is an image"


def test_other_folders_and_bad_arguments_are_refused(tmp_path):
    data, empty = tmp_path / "data", tmp_path / "empty"
    empty.mkdir()
    assert_refused(lambda: register(tmp_path / "no", data), "no does not exist: give the folder")
    mini.put(tmp_path / "file", b"")
    assert_refused(lambda: register(tmp_path / "file", data), "file is a file: give the folder")
    assert_refused(
        lambda: register(empty, data), "does not look like ImageNet: expected .*give a name"
    )
    own = {"name": "own", "resolutions": (8,)}
    assert_refused(
        lambda: register(empty, data, **own), "no train and validation images.*holdout 0.1"
    )
    mini.put(tmp_path / "one/cat/1.png", b"x")
    assert_refused(lambda: register(tmp_path / "one", data, **own), "no validation images.*holdout")
    assert_refused(
        lambda: register(tmp_path / "one", data, **own, holdout=0.1),
        "one usable image of each class, and the last one of a class is never held out: add images",
    )
    for name in ("Own", "", "../x", "9", "a b"):
        assert_refused(
            lambda n=name: register(empty, data, name=n, resolutions=(8,)), "name .* cannot be"
        )
    assert_refused(
        lambda: register(empty, data, name="own"), "say at which resolution .*64 for example"
    )
    for side in (0, -1, 1, 5000):
        assert_refused(
            lambda s=side: register(empty, data, name="own", resolutions=(s,)),
            f"the resolution is {side}, expected 2 to 4096",
        )
    assert_refused(
        lambda: register(empty, data, name="digits", resolutions=(8,)),
        "'digits' is taken by the embedded data set",
    )
    assert_refused(
        lambda: load_source(data, "imagenet"), "not registered on this machine: .*register"
    )
    assert not data.exists()


def test_damaged_sources_are_refused(tmp_path):
    data = tmp_path / "data"
    root = mini.write_archives(tmp_path / "archives")
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"no archive")
    assert_refused(lambda: register(root, data), "devkit .* cannot be read")
    mini.write_devkit(root)
    packed = (root / "ILSVRC2012_devkit_t12.tar.gz").read_bytes()
    middle = len(packed) // 2
    flipped = packed[:middle] + bytes([packed[middle] ^ 255]) + packed[middle + 1 :]
    for damaged in (packed[:middle], flipped, packed[:-4], b""):
        (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(damaged)
        assert_refused(lambda: register(root, data), "devkit .* cannot be read.*fetch them again")
    (root / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    for damaged in (b"", b"junk" * 100):
        mini.put(root / "ILSVRC2012_devkit_t12/data/meta.mat", damaged)
        assert_refused(lambda: register(root, data), "devkit .* cannot be read.*fetch them again")
    shutil.rmtree(root / "ILSVRC2012_devkit_t12")
    assert_refused(lambda: register(root, data), "no validation images.*ground truth .* not there")
    root = mini.write_parquet(tmp_path / "parquet")
    file = root / "data/train-00000-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:3000])
    assert_refused(lambda: register(root, data), "not a complete parquet file.*fetch it again")
    import pandas as pd

    pd.DataFrame({"label": [1], "text": ["a"]}).to_parquet(file)
    assert_refused(
        lambda: register(root, data), r"columns label \(int64\), text \(.*string\), expected"
    )


def test_a_source_that_has_moved_is_named(tmp_path):
    root = mini.write_tree(tmp_path / "raw")
    register(root, tmp_path / "data")
    root.rename(tmp_path / "away")
    assert_refused(
        lambda: load_source(tmp_path / "data", "imagenet"), "raw, which is not there now: make"
    )
    register(tmp_path / "away", tmp_path / "data")
    assert load_source(tmp_path / "data", "imagenet")[1] == tmp_path / "away"


def test_damaged_files_of_a_registration_are_named(tmp_path):
    data = tmp_path / "data"
    register(mini.write_tree(tmp_path / "raw"), data)
    (data / "sources/imagenet.json").write_text("{")
    assert_refused(
        lambda: load_source(data, "imagenet"), "imagenet.json is damaged.*register the source"
    )
    for text in ("[", "other: 1", "registered: 5", "registered: {a: 1}"):
        (data / "registered.yaml").write_text(text)
        assert_refused(lambda: read_registered(data), "registered.yaml is damaged.*restore it")


THREE = ("birch", "oak", "10")


def trees(root: Path, *names: str) -> Path:
    for name in names:
        for index in range(4):
            mini.put(root / name / f"{index}.png", mini.encode(mini.photograph(index), "PNG"))
    return root


TREES = {"name": "trees", "resolutions": (16,), "holdout": 0.25}


def test_classes_keep_their_numbers_when_one_is_added(tmp_path):
    root, data = trees(tmp_path / "raw", *THREE), tmp_path / "data"
    source, listing = register(root, data, **TREES)
    assert source.class_names == listing.class_names == ("10", "birch", "oak")
    first = prepare(data, source="trees")
    trees(root, "acacia", "2")
    source, listing = register(root, data, **TREES)
    assert source.class_names == listing.class_names == ("10", "birch", "oak", "2", "acacia")
    labels = {image.key.split("/")[0]: image.label for image in listing.rows("train", 0, 15)}
    assert labels == {"10": 0, "birch": 1, "oak": 2, "2": 3, "acacia": 4}
    second = prepare(data, source="trees")
    assert second.class_names == (*first.class_names, "2", "acacia")
    assert register(root, data, **TREES)[0] == source, "the numbers do not change again"
    (data / "sources/trees.listing.parquet").unlink()
    assert load_source(data, "trees")[2].checksum == listing.checksum, "git has the numbers"
    assert register(root, tmp_path / "new", **TREES)[0].class_names[:3] == ("2", "10", "acacia")


def test_numbers_of_an_earlier_version_are_kept(tmp_path):
    """It did not write the class names to the description."""
    root, data = trees(tmp_path / "raw", *THREE), tmp_path / "data"
    register(root, data, **TREES)
    file = data / "sources/trees.json"
    fields = json.loads(file.read_text())
    assert fields.pop("class_names") and not {"background", "fit", "label"} & fields.keys()
    file.write_text(json.dumps(fields))
    assert load_source(data, "trees")[0].class_names == ()
    trees(root, "acacia")
    assert register(root, data, **TREES)[0].class_names == ("10", "birch", "oak", "acacia")


def test_a_class_that_is_gone_is_an_error_until_the_classes_are_numbered_anew(tmp_path):
    root, data = trees(tmp_path / "raw", *THREE), tmp_path / "data"
    register(root, data, **TREES)
    before = (data / "sources/trees.json").read_text()
    shutil.rmtree(root / "birch")
    message = (
        "class 'birch' of 'trees', number 1, has no image .* remove .*/trees.json and register"
    )
    assert_refused(lambda: register(root, data, **TREES), message)
    assert (data / "sources/trees.json").read_text() == before
    (data / "sources/trees.json").unlink()
    assert register(root, data, **TREES)[0].class_names == ("10", "oak")


def test_imagenet_takes_no_options(tmp_path):
    root = mini.write_tree(tmp_path / "raw")
    for option in ({"background": "black"}, {"fit": "pad"}, {"label": "label"}):
        assert_refused(
            lambda o=option: register(root, tmp_path / "data", **o),
            "ImageNet is prepared as published, .*register it under another name",
        )
    assert_refused(lambda: register("hub:imagenet", tmp_path / "data"), "hub:imagenet does not loo")


def test_equal_class_names_get_their_ids():
    ids = ["n1", "n2", "n3"]
    names = {"n1": "crane, a bird", "n2": "crane"}
    assert unique_names(ids, names) == ("crane (n1)", "crane (n2)", "n3")
