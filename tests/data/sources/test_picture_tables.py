"""Tables of paths and labels: columns, splits, refused rows, and tables that are of no use."""

import os
from pathlib import Path

import pandas as pd
import pytest

from fractal_model.data.sources.registered import load_source, register
from tests.support import mini_imagenet as mini
from tests.support.listings import assert_refused, contents
from tests.support.litter import write_litter

OWN = {"name": "own", "resolutions": (16,)}
HELD = {**OWN, "holdout": 0.5}
IMAGES = [mini.encode(mini.photograph(seed)) for seed in range(6)]
ROWS = [(f"images/{number}.jpg", label) for number, label in enumerate("bababa")]


def pictures(root: Path) -> Path:
    for (path, _), content in zip(ROWS, IMAGES, strict=True):
        mini.put(root / path, content)
    return root


def write_csv(file: Path, header: str, rows=ROWS, between: str = ",") -> Path:
    lines = [between.join(map(str, row)) for row in rows]
    mini.put(file, "\n".join([header, *lines, ""]).encode())
    return file


def reasons(listing) -> dict[str, str]:
    return {f"{entry.split}/{entry.file}": entry.reason for entry in listing.refused}


@pytest.mark.parametrize("path", ["path", "file", "file_name", "Filename", "image"])
@pytest.mark.parametrize("label", ["label", "Class"])
def test_the_usual_columns_are_found(tmp_path, path, label):
    root = pictures(tmp_path / "raw")
    rows = [(number, *row) for number, row in enumerate(ROWS)]
    write_csv(root / "labels.csv", f"id,{path},{label}", rows)
    source, listing = register(root, tmp_path / "data", **HELD)
    assert source.kind == "table" and source.refused == 0
    assert source.class_names == ("a", "b") and sum(source.images.values()) == 6
    images = contents(root, listing)
    assert sorted(images["train", 0] + images["validation", 0]) == sorted(IMAGES[1::2])


@pytest.mark.parametrize("between", [",", ", ", ";", "\t"])
def test_a_table_is_registered_itself_or_by_its_folder(tmp_path, between):
    root = pictures(tmp_path / "raw")
    table = write_csv(root / "labels.csv", between.join(["path", "label"]), ROWS, between)
    write_litter(root, b"x")
    mini.put(root / ".hidden.csv", table.read_bytes())
    by_folder = register(root, tmp_path / "data", **HELD)
    assert register(table, tmp_path / "data", **HELD) == by_folder
    assert load_source(tmp_path / "data", "own") == (by_folder[0], root, by_folder[1])
    (tmp_path / "data/sources/own.listing.parquet").unlink()
    assert load_source(tmp_path / "data", "own")[1] == root
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    assert register(table, tmp_path / "data", **HELD) == by_folder, "spreadsheets write a mark"


def test_a_parquet_table_is_read(tmp_path):
    root = pictures(tmp_path / "raw")
    frame = pd.DataFrame(ROWS, columns=["path", "label"])
    frame["label"] = frame["label"].astype("category")
    frame["split"] = ["train", "train", "val", "Validation", "test", "train"]
    frame["area"] = 0.5
    frame.to_parquet(root / "labels.parquet")
    source, listing = register(root / "labels.parquet", tmp_path / "data", **OWN)
    assert source.images == {"train": 3, "validation": 2}
    assert contents(root, listing)["validation", 1] == [IMAGES[2]]
    frame["label"] = [10, 9, 10, 9, 10, 9]
    frame.to_parquet(root / "labels.parquet")
    assert register(root, tmp_path / "new", **OWN)[0].class_names == ("9", "10")


def test_metadata_in_the_folders_of_the_splits_is_read(tmp_path):
    """An image folder of the hub. Paths are relative to the table."""
    for split in ("train", "validation"):
        pictures(tmp_path / "raw" / split)
        write_csv(tmp_path / "raw" / split / "metadata.csv", "file_name,label")
    source, listing = register(tmp_path / "raw", tmp_path / "data", **OWN)
    assert source.images == {"train": 6, "validation": 6}
    assert listing.rows("validation", 0, 1)[0].file == "validation/images/1.jpg"
    message = "0.5 of the images are to be held out, but .*/raw is table, which has validation"
    assert_refused(lambda: register(tmp_path / "raw", tmp_path / "data", **HELD), message)


def test_the_name_of_a_table_says_its_split(tmp_path):
    root = pictures(tmp_path / "raw")
    for name, rows in (("train", ROWS[:4]), ("val_labels", ROWS[4:]), ("test", ROWS)):
        write_csv(root / f"{name}.csv", "path,label", rows)
    source, _ = register(root, tmp_path / "data", **OWN)
    assert source.images == {"train": 4, "validation": 2}


def test_tables_of_something_else_do_not_hide_class_folders(tmp_path):
    root = pictures(tmp_path / "raw")
    write_csv(root / "metadata.csv", "file_name,caption")
    mini.put(root / "numbers.csv", b"\xff\xfe\0")
    mini.put(root / "broken.parquet", b"PAR1")
    os.mkfifo(root / "pipe.csv")
    source, _ = register(root, tmp_path / "data", **HELD)
    assert source.kind == "folder" and source.class_names == ("images",)


def test_rows_that_cannot_be_used_are_refused(tmp_path):
    root = pictures(tmp_path / "raw/inner")
    mini.put(tmp_path / "raw/secret.jpg", IMAGES[0])
    mini.put(root / "notes.txt", b"x")
    (root / "folder.jpg").mkdir()
    (root / "link.jpg").symlink_to("nowhere")
    odd = [
        ("../secret.jpg", "a"),
        ("images/../../secret.jpg", "a"),
        (str(tmp_path / "raw/secret.jpg"), "a"),
        ("images/9.jpg", "a"),
        ("images/0.jpg", ""),
        ("", "a"),
        ("images/0.jpg", "b"),
        ("notes.txt", "a"),
        ("folder.jpg", "a"),
        ("link.jpg", "a"),
        ("null\0.jpg", "a"),
    ]
    table = write_csv(root / "labels.csv", "path,label", [*ROWS, *odd])
    source, listing = register(table, tmp_path / "data", **HELD)
    assert sum(source.images.values()) == 6
    leaves = "its path leaves the folder of the table"
    assert reasons(listing) == {
        "train/a/../secret.jpg": leaves,
        "train/a/images/../../secret.jpg": leaves,
        f"train/a/{tmp_path}/raw/secret.jpg": leaves,
        "train/a/images/9.jpg": "there is no such file",
        "train/images/0.jpg": "its row has no path or no class",
        "train/labels.csv": "its row has no path or no class",
        "train/b/images/0.jpg": "there are two files of this name",
        "train/a/notes.txt": "its name does not end like an image's",
        "train/a/folder.jpg": "not a regular file",
        "train/a/link.jpg": "a link that leads nowhere",
        "train/a/null\\x00.jpg": "its path has a null character",
    }


def test_a_table_whose_pictures_are_all_missing_is_an_error(tmp_path):
    table = write_csv(tmp_path / "labels.csv", "path,label")
    message = (
        r"labels.csv has no train and validation images to use \(6 refused, first train/b/images"
    )
    assert_refused(lambda: register(table, tmp_path / "data", **HELD), message)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            "path,kind",
            r"has the columns path, kind, expected path \(or file, .*and label \(or class",
        ),
        ("place,label", r"has the columns place, label, expected path \(or file, file_name, "),
        ("", "has the columns of no name, expected path"),
        (
            "path,label,class",
            r"has 2 label columns \(label, class\), expected one: choose it, for example label",
        ),
        ("path,label,split", "row 1 of .*labels.csv has the split 'trian', expected train, valid"),
    ],
)
def test_a_table_with_wrong_columns_is_an_error(tmp_path, header, message):
    root = pictures(tmp_path / "raw")
    table = write_csv(root / "labels.csv", header, [(*row, "trian") for row in ROWS])
    assert_refused(lambda: register(table, tmp_path / "data", **HELD), message)


def test_the_label_column_can_be_chosen(tmp_path):
    root = pictures(tmp_path / "raw")
    rows = [(path, label, "all") for path, label in ROWS]
    write_csv(root / "labels.csv", "path,label,class", rows)
    source, listing = register(root, tmp_path / "data", **HELD, label="class")
    assert source.class_names == ("all",) and source.label == "class"
    (tmp_path / "data/sources/own.listing.parquet").unlink()
    assert load_source(tmp_path / "data", "own")[2].checksum == listing.checksum
    table = root / "labels.csv"
    message = "has the columns path, label, class, expected path .* and kind"
    assert_refused(lambda: register(table, tmp_path / "new", **HELD, label="kind"), message)


def test_a_label_is_only_for_columns(tmp_path):
    root = pictures(tmp_path / "raw")
    message = "raw has no table of pictures with the column 'kind': name a column that it has, or"
    assert_refused(lambda: register(root, tmp_path / "data", **HELD, label="kind"), message)


def test_a_parquet_file_with_images_is_no_table_of_paths(tmp_path):
    frame = pd.DataFrame({"image": [{"bytes": image} for image in IMAGES]})
    frame["label"], frame["file_name"] = 0, [path for path, _ in ROWS]
    (tmp_path / "raw").mkdir()
    frame.to_parquet(tmp_path / "raw/train.parquet")
    assert register(tmp_path / "raw", tmp_path / "data", **HELD)[0].kind == "parquet"


def test_a_table_that_cannot_be_read_is_an_error(tmp_path):
    for name, content in (("a.csv", b"path,label\n\xff,a\n"), ("b.parquet", b"PAR1")):
        mini.put(tmp_path / name, content)
        message = f"the table .*/{name} cannot be read .*: save it as CSV in UTF-8 with commas"
        assert_refused(lambda n=name: register(tmp_path / n, tmp_path / "data", **HELD), message)


def test_two_tables_of_the_same_split_are_an_error(tmp_path):
    root = pictures(tmp_path / "raw")
    for name in ("labels", "metadata"):
        write_csv(root / f"{name}.csv", "path,label")
    message = r"has several tables of pictures \(labels.csv, metadata.csv\): give the one to read"
    assert_refused(lambda: register(root, tmp_path / "data", **HELD), message)
    register(root / "labels.csv", tmp_path / "data", **HELD)
