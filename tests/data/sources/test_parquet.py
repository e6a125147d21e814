"""Parquet files: checksums, refused rows, layouts of the hub, and the memory of reading."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fractal_model.data.sources import parquet
from fractal_model.data.sources.listing import ImageFile
from fractal_model.data.sources.reading import SourceReader
from fractal_model.data.sources.registered import load_source, register
from tests.support import REPOSITORY
from tests.support import mini_imagenet as mini
from tests.support.listings import assert_refused, contents
from tests.support.litter import write_litter

IMAGES = [mini.encode(mini.photograph(seed)) for seed in range(6)]
LABELS = [0, 1, 2, 0, 1, 2]


def write(file: Path, images=IMAGES, labels=LABELS, paths=None, **options) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = zip(images, paths or [None] * len(images), strict=True)
    table = pa.table(
        {"image": pa.array([{"bytes": i, "path": p} for i, p in rows]), "label": labels}
    )
    pq.write_table(table, file, **options)
    return file


def both(root: Path, **train) -> Path:
    write(root / "train-0.parquet", **train)
    write(root / "validation-0.parquet")
    return root


def test_replaced_images_change_the_description(tmp_path):
    root, data = both(tmp_path / "raw"), tmp_path / "data"
    before, _ = register(root, data)
    assert register(root, data)[0] == before
    write(root / "train-0.parquet", images=IMAGES[::-1])
    after, listing = register(root, data)
    assert after.images == before.images
    assert after.listing_checksum != before.listing_checksum
    assert set(listing.files) == {"train-0.parquet", "validation-0.parquet"}
    assert load_source(data, "imagenet")[2] == listing


def test_rows_with_the_same_path_are_separate_images(tmp_path):
    root = both(tmp_path / "raw", paths=["image.jpg"] * 6, row_group_size=4)
    source, listing = register(root, tmp_path / "data")
    assert source.images["train"] == 6 and source.refused == 0
    assert contents(root, listing)["train", 1] == [IMAGES[1], IMAGES[4]]
    keys = [image.key for image in listing.rows("train", 0, 6)]
    assert keys[4] == "0001/train-0.parquet:1:0:image.jpg" and len(set(keys)) == 6


def test_a_name_that_says_another_class_is_refused_for_imagenet(tmp_path):
    ids = ("n01440764", "n02012849", "n03126707")
    paths = [f"{ids[label]}_{row}.JPEG" for row, label in enumerate(LABELS * 2)]
    paths[6] = f"{ids[1]}_6.JPEG"
    paths[7] = None
    root = both(tmp_path / "raw", images=IMAGES * 2, labels=LABELS * 2, paths=paths)
    source, listing = register(root, tmp_path / "data")
    assert source.images["train"] == 11
    assert [(entry.file, entry.reason) for entry in listing.refused] == [
        (
            "train-0.parquet:0:6:n02012849_6.JPEG",
            "its name says class n02012849, it is in n01440764",
        )
    ]
    own = {"name": "own", "resolutions": (16,)}
    assert register(root, tmp_path / "data", **own)[0].images["train"] == 12


def test_missing_and_negative_labels_are_refused(tmp_path):
    root = both(tmp_path / "raw", labels=[0, 1, None, -1, 1, 2])
    _, listing = register(root, tmp_path / "data")
    assert [entry.reason for entry in listing.refused] == ["its label is None", "its label is -1"]


@pytest.mark.parametrize(
    "columns",
    [
        {"image": [b"x"], "label": [0]},
        {"image": [{"bytes": "text"}], "label": [0]},
        {"image": [{"path": "a"}], "label": [0]},
        {"image": [{"bytes": b"x"}], "label": ["cat"]},
        {"image": [{"bytes": b"x"}]},
    ],
)
def test_other_columns_are_refused(tmp_path, columns):
    root = both(tmp_path / "raw")
    pq.write_table(pa.table(columns), root / "train-0.parquet")
    message = r"has the columns image \(.*expected image \(with bytes\) and label \(an integer\)"
    assert_refused(lambda: register(root, tmp_path / "data"), message)


def test_rows_are_read_in_any_order(tmp_path):
    write(tmp_path / "train-0.parquet", row_group_size=4)
    write(tmp_path / "train-1.parquet", images=IMAGES[::-1], row_group_size=4)
    reader = SourceReader(tmp_path)
    for file, group, row, expected in (
        (0, 0, 0, 0),
        (0, 0, 1, 1),
        (0, 0, 3, 3),
        (0, 0, 3, 3),
        (0, 0, 1, 1),
        (0, 1, 1, 5),
        (1, 1, 1, 0),
        (0, 1, 0, 4),
        (1, 0, 2, 3),
    ):
        image = ImageFile("train", 0, "k", f"train-{file}.parquet", group, row)
        assert reader.read(image) == IMAGES[expected], (file, group, row)


def test_files_that_have_changed_raise_os_errors(tmp_path):
    write(tmp_path / "train-0.parquet", row_group_size=4)
    reader = SourceReader(tmp_path)
    with pytest.raises(OSError, match="row group 1 of train-0.parquet ends before row 2"):
        reader.read(ImageFile("train", 0, "k", "train-0.parquet", 1, 2))
    with pytest.raises(OSError, match="row group 7 of train-0.parquet cannot be read"):
        reader.read(ImageFile("train", 0, "k", "train-0.parquet", 7, 0))
    with pytest.raises(OSError, match="No such file"):
        reader.read(ImageFile("train", 0, "k", "train-9.parquet", 0, 0))
    assert reader.read(ImageFile("train", 0, "k", "train-0.parquet", 1, 1)) == IMAGES[5]
    file = tmp_path / "train-2.parquet"
    content = bytearray(write(file).read_bytes())
    content[4:2000] = b"\xff" * 1996
    file.write_bytes(content)
    with pytest.raises(OSError, match="row group 0 of train-2.parquet cannot be read"):
        reader.read(ImageFile("train", 0, "k", "train-2.parquet", 0, 0))


def test_an_image_that_became_too_large_is_not_read(tmp_path, monkeypatch):
    write(tmp_path / "train-0.parquet")
    mini.put(tmp_path / "a/1.jpg", IMAGES[0])
    monkeypatch.setattr("fractal_model.data.sources.reading.LARGEST_IMAGE", 100)
    for image in (
        ImageFile("train", 0, "k", "train-0.parquet", 0, 0),
        ImageFile("train", 0, "k", "a/1.jpg", -1, 50),
    ):
        with pytest.raises(OSError, match="an image in .* bytes, more than 100"):
            SourceReader(tmp_path).read(image)


def test_images_too_large_are_found_in_large_row_groups(tmp_path, monkeypatch):
    for module in ("parquet", "listing"):
        monkeypatch.setattr(f"fractal_model.data.sources.{module}.LARGEST_IMAGE", 5000)
    images = [*IMAGES[:4], os.urandom(5001), None]
    root = both(tmp_path / "raw", images=images, use_dictionary=False)
    _, listing = register(root, tmp_path / "data")
    assert [(entry.file, entry.reason) for entry in listing.refused] == [
        ("train-0.parquet:0:4", "it has 5,001 bytes, at most 5,000 are read as an image")
    ]


def test_row_groups_that_take_too_much_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "LARGEST_IMAGE", 1)
    monkeypatch.setattr(parquet, "_LARGEST_PAGE", 2**20)
    images = [os.urandom(2**19)] * 6
    root = both(tmp_path / "raw", images=images, use_dictionary=False, row_group_size=3)
    message = (
        "row group 0 of .*train-0.parquet has 2 MiB in 3 images.*at most 1 MiB.*row_group_size"
    )
    assert_refused(lambda: register(root, tmp_path / "data"), message)
    both(root, images=images, use_dictionary=False, row_group_size=1)
    assert register(root, tmp_path / "data")[0].images["train"] == 6


OWN = {"name": "own", "resolutions": (16,)}
LAYOUTS = {
    "converted by the hub": ("default/train/0000.parquet", "default/validation/0000.parquet"),
    "a configuration": ("plain/train-00000-of-00001.parquet", "plain/valid-00000-of-00001.parquet"),
    "in data": ("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"),
    "folders of splits": ("train/part-00000.snappy.parquet", "val/part-00000.snappy.parquet"),
    "folders in data": ("data/train/0.parquet", "data/validation/0.parquet"),
    "two files": ("train.parquet", "validation.parquet"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_hub_are_read(tmp_path, layout):
    root = tmp_path / "raw"
    for file in LAYOUTS[layout]:
        write(root / file)
    write(root / "default/test/0000.parquet")
    write(root / "data/test-00000-of-00001.parquet")
    mini.put(root / "README.md", b"x")
    write_litter(root, b"x")
    source, listing = register(root, tmp_path / "data", **OWN)
    assert source.images == {"train": 6, "validation": 6} and source.classes == 3
    assert source.kind == "parquet" and source.missing == (), "only ImageNet needs 1,000 classes"
    assert contents(root, listing)["train", 1] == [IMAGES[1], IMAGES[4]]
    assert load_source(tmp_path / "data", "own")[2] == listing
    assert "997 of 1000 classes" in register(root, tmp_path / "data")[0].missing


def test_several_configurations_are_refused(tmp_path):
    for name in ("large", "small"):
        write(tmp_path / "raw" / name / "train/0000.parquet")
    message = r"parquet files of 2 configurations \(large, small\): give .* such as .*/raw/large$"
    assert_refused(lambda: register(tmp_path / "raw", tmp_path / "data", **OWN), message)


def test_parquet_files_beside_images_do_not_hide_them(tmp_path):
    """The hub's image folders have `metadata.parquet`, for example."""
    for place in ("train/a", "validation/a"):
        mini.put(tmp_path / "raw" / place / "1.jpg", IMAGES[0])
    for name in ("train/metadata.parquet", "metadata.parquet", "train/a/0.parquet"):
        write(tmp_path / "raw" / name)
    assert register(tmp_path / "raw", tmp_path / "data", **OWN)[0].kind == "folder"


def test_a_share_of_own_parquet_files_is_held_out(tmp_path):
    root, data = tmp_path / "raw", tmp_path / "data"
    write(root / "train.parquet", images=IMAGES * 2, labels=LABELS * 2)
    assert_refused(lambda: register(root, data, **OWN), "no validation images .*with holdout 0.1")
    source, listing = register(root, data, **OWN, holdout=0.25)
    assert source.images == {"train": 9, "validation": 3}
    assert [image.label for image in listing.rows("validation", 0, 3)] == [0, 1, 2]
    images = contents(root, listing)
    for label in range(3):
        both_splits = images["train", label] + images["validation", label]
        assert sorted(both_splits) == sorted([IMAGES[label], IMAGES[label + 3]] * 2)
    write(root / "validation.parquet")
    assert_refused(
        lambda: register(root, data, **OWN, holdout=0.25), "has validation images of its own"
    )


def test_more_than_ten_thousand_labels_sort_as_numbers(tmp_path):
    root = both(tmp_path / "raw", labels=[9999, 10_000, 2, 9999, 10_000, 2])
    _, listing = register(root, tmp_path / "data", **OWN)
    assert listing.class_names == ("0000", "0001", "0002", "9999", "10000")


MEMORY = """
import sys
import psutil
from pathlib import Path
from fractal_model.data.sources.listing import ImageFile
from fractal_model.data.sources.reading import SourceReader

reader, process = SourceReader(Path(sys.argv[1])), psutil.Process()
reader.read(ImageFile("train", 0, "k", "small.parquet", 0, 0))
before, most = process.memory_info().rss, 0
for group in (0, 1):
    for row in range(150):
        assert len(reader.read(ImageFile("train", 0, "k", "train-0.parquet", group, row))) == 2**20
        most = max(most, process.memory_info().rss - before)
print(most >> 20)
"""


def test_reading_needs_memory_for_pages_not_for_row_groups(tmp_path):
    """Each of two row groups has 150 MB and would take 300 MB if it were read at once."""
    write(tmp_path / "small.parquet")
    images = [os.urandom(2**20)] * 300
    write(
        tmp_path / "train-0.parquet",
        images=images,
        labels=[0] * 300,
        row_group_size=150,
        use_dictionary=False,
        write_batch_size=1,
    )
    process = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(process.stdout) < 100, "MB"
