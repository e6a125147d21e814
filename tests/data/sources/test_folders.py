"""Class folders: nested and wrong ones, links, splits, and names of sources."""

import os
from pathlib import Path

import pytest

from fractal_model.common.errors import FractalError
from fractal_model.data.sources.folders import ignored_folders
from fractal_model.data.sources.listing import LARGEST_IMAGE, printable_name
from fractal_model.data.sources.registered import load_source, register
from tests.support import mini_imagenet as mini
from tests.support.listings import assert_refused, contents, expected
from tests.support.litter import write_litter

OWN = {"name": "own", "resolutions": (16,)}


def own_folder(root: Path, *places: str, images: int = 6) -> Path:
    for place in places:
        for index in range(images):
            mini.put(root / place / f"{index}.jpg", mini.encode(mini.photograph(index)))
    return root


def reasons(listing) -> dict[str, str]:
    return {f"{entry.split}/{entry.file}": entry.reason for entry in listing.refused}


def test_folders_within_a_class_are_read(tmp_path):
    root = own_folder(tmp_path / "raw", "train/a", "train/a/more/yet", "train/b", "validation/a")
    source, listing = register(root, tmp_path / "data", **OWN)
    assert source.images == {"train": 18, "validation": 6} and source.refused == 0
    keys = [image.key for image in listing.rows("train", 0, 18)]
    assert keys[6:12] == [f"a/more/yet/{index}.jpg" for index in range(6)]
    assert keys == sorted(keys), "the same name in two folders is two images"


def test_a_folder_of_images_in_each_class_of_imagenet_is_read(tmp_path):
    """Tiny-ImageNet has such folders."""
    root = mini.write_tree(tmp_path / "raw")
    for folder in list((root / "train").iterdir()):
        folder.rename(tmp_path / "images")
        folder.mkdir()
        (tmp_path / "images").rename(folder / "images")
    _, listing = register(root, tmp_path / "data")
    assert contents(root, listing) == expected() and not listing.refused


def test_held_out_images_come_from_nested_folders_too(tmp_path):
    root = own_folder(tmp_path / "raw", "a/one", "a/two", "b")
    source, listing = register(root, tmp_path / "data", **OWN, holdout=0.5)
    assert source.images == {"train": 9, "validation": 9}
    keys = {image.key for image in listing.rows("train", 0, 9)}
    assert not keys & {image.key for image in listing.rows("validation", 0, 9)}


def test_linked_folders_in_a_class_are_refused(tmp_path):
    """Links may form a circle. A class's folder itself may be a link."""
    root = own_folder(tmp_path / "raw", "train/a", "validation/a")
    own_folder(tmp_path / "elsewhere", ".")
    os.symlink(tmp_path / "elsewhere", root / "train/b")
    os.symlink(root / "train", root / "train/a/round")
    source, listing = register(root, tmp_path / "data", **OWN)
    assert source.images["train"] == 12
    assert reasons(listing) == {"train/a/round": "a link to a folder: put the folder itself there"}


def test_links_to_images_that_are_listed_anyway_are_refused(tmp_path):
    root = own_folder(tmp_path / "raw", "cat/more", "dog")
    own_folder(tmp_path / "elsewhere", ".")
    for link, target in {"all": ".", "above": "..", "a": "dog", "b": "cat/more"}.items():
        os.symlink(target, root / link)
    os.symlink(tmp_path / "elsewhere", root / "fish")
    source, listing = register(root, tmp_path / "data", **OWN, holdout=0.5)
    assert listing.class_names == ("cat", "dog", "fish") and sum(source.images.values()) == 18
    reason = "a link to images that are listed anyway: remove it"
    assert reasons(listing) == {f"train/{link}": reason for link in ("all", "above", "a", "b")}


def test_a_link_to_itself_is_refused_alone(tmp_path):
    root = own_folder(tmp_path / "raw", "train/a", "validation/a")
    for place in ("round", "train/round.jpg", "train/a/round.jpg"):
        os.symlink(Path(place).name, root / place)
    source, listing = register(root, tmp_path / "data", **OWN)
    assert source.images == {"train": 6, "validation": 6}
    assert reasons(listing) == {
        "train/round.jpg": "not in a class's folder",
        "train/a/round.jpg": "it cannot be read (Too many levels of symbolic links)",
    }


@pytest.mark.parametrize("names", [("café", "cafe\u0301"), ("cat", "cat "), (" cat", "cat")])
def test_classes_that_look_the_same_are_refused(tmp_path, names):
    root = own_folder(tmp_path / "raw", *names, "dog")
    with pytest.raises(FractalError) as raised:
        register(root, tmp_path / "data", **OWN, holdout=0.5)
    first, second = (ascii(name) for name in sorted(names))
    assert f"the classes {first} and {second} look the same: put" in str(raised.value)


def test_classes_without_usable_images_are_named(tmp_path):
    root = own_folder(tmp_path / "raw", "train/a", "validation/a")
    for name in ("b", "c", "d", "e"):
        (root / "train" / name).mkdir()
    mini.put(root / "train/f/notes.txt", b"x")
    source, listing = register(root, tmp_path / "data", **OWN)
    assert listing.unused == tuple(f"train/{name}" for name in "bcdef")
    assert source.missing == (
        "images of train/b that can be used",
        "images of train/c that can be used",
        "images of train/d that can be used",
        "images of 2 more classes",
    )
    assert load_source(tmp_path / "data", "own")[2] == listing


def test_each_image_of_a_wrong_class_is_refused(tmp_path):
    root = mini.write_tree(tmp_path / "raw")
    own_folder(root, "train/cats", "train/cats/more")
    source, listing = register(root, tmp_path / "data")
    assert source.refused == 12
    assert set(reasons(listing).values()) == {"its folder's name is no class such as n01440764"}
    assert "train/cats/more/0.jpg" in reasons(listing)


def test_validation_classes_without_training_images_are_refused(tmp_path):
    root = own_folder(tmp_path / "raw", "train/a", "train/b", "val/a", "val/images")
    source, listing = register(root, tmp_path / "data", **OWN)
    assert source.images["validation"] == 6 and listing.class_names == ("a", "b")
    refused = reasons(listing)
    assert len(refused) == 6
    assert refused["validation/images/0.jpg"] == "there are no training images of the class images"


def test_files_too_large_to_be_images_are_refused_unread(tmp_path):
    root = own_folder(tmp_path / "raw", "train/a", "validation/a")
    os.truncate(root / "train/a/0.jpg", LARGEST_IMAGE + 1)  # a hole, no disk is used
    source, listing = register(root, tmp_path / "data", **OWN)
    assert source.images["train"] == 5
    reason = reasons(listing)["train/a/0.jpg"]
    assert reason == "it has 268,435,457 bytes, at most 268,435,456 are read as an image"


def test_names_that_are_not_utf8_are_refused(tmp_path):
    root = own_folder(tmp_path / "raw", "train/a", "validation/a", "train/straße")
    raw = os.fsencode(root)
    Path(os.fsdecode(raw + b"/train/a/caf\xe9.jpg")).write_bytes(b"image")
    Path(os.fsdecode(raw + b"/train/a/two\nlines.jpg")).write_bytes(b"image")
    Path(os.fsdecode(raw + b"/train/\xe9t\xe9")).mkdir()
    Path(os.fsdecode(raw + b"/train/\xe9t\xe9/1.jpg")).write_bytes(b"image")
    source, listing = register(root, tmp_path / "data", **OWN)
    reason = "its name is not UTF-8 or has control characters: rename it"
    assert reasons(listing) == {
        r"train/a/caf\xe9.jpg": reason,
        r"train/a/two\nlines.jpg": reason,
        r"train/\xe9t\xe9/1.jpg": reason,
    }
    assert source.images["train"] == 12 and listing.class_names == ("a", "straße")
    moved = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9"))
    root.rename(moved)
    assert_refused(lambda: register(moved, tmp_path / "data", **OWN), r"/\\xe9 is not UTF-8 or has")
    own_folder(tmp_path / "held", "a")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/held/a/\xe9.jpg")).write_bytes(b"image")
    assert register(tmp_path / "held", tmp_path / "new", **OWN, holdout=0.3)[0].refused == 1


@pytest.mark.parametrize("name", ["plain.jpg", "straße 山　水.jpg", "a/b.jpg"])
def test_ordinary_names_are_not_escaped(name):
    assert printable_name(name) == name


def test_wordnet_ids_under_another_name_are_ordinary_classes(tmp_path):
    """Example: ImageNet-100. It needs no 1000 classes, and a share can be held out."""
    root = own_folder(tmp_path / "raw", "train/n01440764", "train/n02012849")
    source, listing = register(root, tmp_path / "data", **OWN, holdout=0.5)
    assert source.kind == "folder" and source.images == {"train": 6, "validation": 6}
    assert source.missing == () and listing.class_names == ("n01440764", "n02012849")
    assert_refused(
        lambda: register(root, tmp_path / "data"), "no validation images.*put train/<wnid>"
    )


def test_nothing_is_held_out_beside_validation_images(tmp_path):
    own = own_folder(tmp_path / "raw", "train/a", "validation/a")
    data = tmp_path / "data"
    assert_refused(
        lambda: register(own, data, **OWN, holdout=0.3),
        "0.3 of the images .*, but .*/validation has validation images already: use no holdout",
    )
    for form, write in mini.FORMS.items():
        root = write(tmp_path / form)
        assert_refused(
            lambda r=root: register(r, data, holdout=0.3),
            "0.3 of the images .*, but .* is ImageNet .*: use no holdout",
        )
    assert not data.exists()


def test_nothing_is_held_out_beside_an_empty_validation_folder(tmp_path):
    own, data = own_folder(tmp_path / "raw", "a", "b"), tmp_path / "data"
    for name in ("validation", "validation/a"):
        (own / name).mkdir()
        mini.put(own / "validation/Thumbs.db", b"x")
        message = "0.5 of .*, but .*/validation has no images: remove that folder, or put the valid"
        assert_refused(lambda: register(own, data, **OWN, holdout=0.5), message)
    assert not data.exists()


def test_class_folders_with_numerals_as_names_are_sorted_by_number(tmp_path):
    names = [str(number) for number in range(12)]
    root = own_folder(tmp_path / "raw", *names, images=2)
    _, listing = register(root, tmp_path / "data", **OWN, holdout=0.5)
    assert listing.class_names == tuple(names)
    for split in ("train", "validation"):
        images = listing.rows(split, 0, 12)
        assert [image.key.split("/")[0] for image in images] == names
        assert [image.label for image in images] == list(range(12))
    own_folder(root, "007", "cat", "-1", "3b", images=2)
    _, listing = register(root, tmp_path / "new", **OWN, holdout=0.5)
    assert listing.class_names == (*names[:7], "007", *names[7:], "-1", "3b", "cat")


def test_a_class_keeps_the_whole_name_of_its_folder(tmp_path):
    root = own_folder(tmp_path / "raw", "a,b", "a,c", " d")
    _, listing = register(root, tmp_path / "data", **OWN, holdout=0.5)
    assert listing.class_names == (" d", "a,b", "a,c")


@pytest.mark.parametrize("name", ["none", "None"])
def test_a_class_cannot_have_the_name_that_stands_for_no_class(tmp_path, name):
    root = own_folder(tmp_path / "raw", "a", name)
    message = f"a class is called '{name}', the word that asks for a sample without a class: renam"
    assert_refused(lambda: register(root, tmp_path / "data", **OWN, holdout=0.5), message)


@pytest.mark.parametrize("split", [True, False])
def test_litter_in_class_folders_is_ignored(tmp_path, split):
    places = ("train/a/more", "train/b", "validation/a") if split else ("a/more", "b")
    root, data, share = own_folder(tmp_path / "raw", *places), tmp_path / "data", 0.5 * (not split)
    before = register(root, data, **OWN, holdout=share)
    write_litter(root, mini.encode(mini.photograph(0)))
    assert register(root, data, **OWN, holdout=share) == before
    assert before[0].refused == 0 and before[0].classes == 2


def test_litter_in_the_tree_of_imagenet_is_ignored(tmp_path):
    root = mini.write_tree(tmp_path / "raw", flat=True)
    before = register(root, tmp_path / "data")
    write_litter(root / "train", mini.encode(mini.photograph(0)))
    write_litter(root / "val", mini.encode(mini.photograph(0)))
    assert register(root, tmp_path / "data") == before


def test_capitals_in_the_names_of_splits_do_not_matter(tmp_path):
    root = own_folder(tmp_path / "raw", "Train/a", "VALIDATION/a", "test/a", "extra/a")
    source, _ = register(root, tmp_path / "data", **OWN)
    assert source.images == {"train": 6, "validation": 6}
    assert ignored_folders(root) == ["extra", "test"]
    assert ignored_folders(own_folder(tmp_path / "classes", "a", "b")) == []


def test_valid_is_a_split_beside_train_and_else_a_class(tmp_path):
    """The hub's parquet files may have this name too."""
    root = own_folder(tmp_path / "raw", "train/a", "valid/a")
    assert register(root, tmp_path / "data", **OWN)[0].images == {"train": 6, "validation": 6}
    root = own_folder(tmp_path / "coins", "valid", "invalid")
    listing = register(root, tmp_path / "new", **OWN, holdout=0.5)[1]
    assert listing.class_names == ("invalid", "valid")


def test_folders_of_other_splits_are_not_classes(tmp_path):
    root = own_folder(tmp_path / "raw", "Training/a", "testing/a")
    message = "Training/ and testing/, which are names of splits and not of classes: rename"
    assert_refused(lambda: register(root, tmp_path / "data", **OWN, holdout=0.5), message)


def test_ambiguous_or_missing_split_folders_are_refused(tmp_path):
    root = own_folder(tmp_path / "raw", "validation/a")
    assert_refused(
        lambda: register(root, tmp_path / "data", **OWN), "has validation/ and no train/: put"
    )
    own_folder(root, "train/a", "val/a")
    assert_refused(
        lambda: register(root, tmp_path / "data", **OWN), "both val and validation: expected"
    )


def test_the_error_says_why_a_split_has_no_images(tmp_path):
    root = own_folder(mini.write_tree(tmp_path / "raw"), "val/images")
    for folder in (root / "val").glob("n*"):
        for file in folder.iterdir():
            file.unlink()
    message = r"no validation images.*\(6 refused, first validation/images/0.jpg: its folder's name"
    assert_refused(lambda: register(root, tmp_path / "data"), message)


ENDINGS = {
    "a.WEBP": "WEBP",
    "b.avif": "AVIF",
    "c.Bmp": "BMP",
    "d.TIF": "TIFF",
    "e.tiff": "TIFF",
    "f.GIF": "GIF",
    "g.JPEG": "JPEG",
    "h.PNG": "PNG",
}


def test_images_without_class_folders_are_one_class(tmp_path):
    """All usual endings are read, in capitals too. Other files and litter are ignored."""
    for name, kind in ENDINGS.items():
        mini.put(tmp_path / "raw" / name, mini.encode(mini.photograph(0), kind))
    mini.put(tmp_path / "raw/README.md", b"about")
    write_litter(tmp_path / "raw", mini.encode(mini.photograph(0)))
    source, listing = register(tmp_path / "raw", tmp_path / "data", **OWN, holdout=0.25)
    assert source.kind == "folder" and source.images == {"train": 6, "validation": 2}
    assert listing.class_names == ("own",) and source.refused == 0
    keys = {image.key for split in listing.splits() for image in listing.rows(split, 0, 8)}
    assert keys == {f"own/{name}" for name in ENDINGS}


def test_splits_without_class_folders_are_one_class(tmp_path):
    root = own_folder(tmp_path / "raw", "train", "val")
    source, listing = register(root, tmp_path / "data", **OWN)
    assert source.images == {"train": 6, "validation": 6} and listing.class_names == ("own",)


def test_images_beside_class_folders_are_refused(tmp_path):
    root = own_folder(tmp_path / "raw", "train/a", "val")
    mini.put(root / "train/0.jpg", mini.encode(mini.photograph(0)))
    message = r"no validation images to use \(6 refused, first validation/0.jpg: not in a class's f"
    assert_refused(lambda: register(root, tmp_path / "data", **OWN), message)
    own_folder(root, "val/a")
    _, listing = register(root, tmp_path / "data", **OWN)
    assert reasons(listing).keys() == {f"validation/{i}.jpg" for i in range(6)} | {"train/0.jpg"}


def test_a_file_that_is_not_regular_is_refused(tmp_path):
    root = own_folder(tmp_path / "raw", "train/a", "validation/a")
    os.mkfifo(root / "train/a/pipe.jpg")
    _, listing = register(root, tmp_path / "data", **OWN)
    assert reasons(listing) == {"train/a/pipe.jpg": "not a regular file"}
