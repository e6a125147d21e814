"""The prepared format is lossless, has the same bytes after each run, and is never incomplete."""

import io
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from fractal_model.common.errors import FractalError
from fractal_model.data.digits import prepare_digits
from fractal_model.data.manifest import MANIFEST_NAME, read_manifest
from fractal_model.data.prepared import open_prepared, verify_prepared
from fractal_model.data.writing import write_prepared
from tests.support import REPOSITORY

SIDE = 6
CLASSES = ("cat", "dog")


def noise(count: int, seed: int) -> list[tuple[np.ndarray, int]]:
    images = np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    return [(image, i % 2) for i, image in enumerate(images)]


def write(folder: Path, splits=None, **options):
    return write_prepared(
        folder,
        dataset="noise",
        source="random numbers",
        preprocessing="noise version 1",
        resolution=SIDE,
        class_names=CLASSES,
        splits=splits or {"train": noise(300, 0), "validation": noise(21, 1)},
        **options,
    )


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def edit_manifest(folder: Path, change) -> None:
    path = folder / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pristine") / "noise"
    write(folder)
    return folder


@pytest.fixture
def folder(pristine, tmp_path) -> Path:
    """Return a copy of the data set that a test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "data" / "noise"))


def test_a_round_trip_is_lossless(pristine):
    split = open_prepared(pristine, "train")
    expected = noise(300, 0)
    assert len(split) == 300 and split.name == "train" and split.class_names == CLASSES
    for index, (image, label) in enumerate(expected):
        example = split[index]
        assert example.image.dtype == torch.uint8 and example.image.shape == (3, SIDE, SIDE)
        assert (example.image.permute(1, 2, 0).numpy() == image).all()
        assert (example.label, example.index) == (label, index)
    images, labels = split.load_all()
    assert (images.permute(0, 2, 3, 1).numpy() == np.stack([i for i, _ in expected])).all()
    assert labels.dtype == torch.int64 and labels.tolist() == [label for _, label in expected]
    verify_prepared(pristine)


def test_indices_work_as_in_a_sequence(pristine):
    split = open_prepared(pristine, "validation")
    assert split[-1].index == 20 and split[np.int64(3)].index == 3
    assert len(list(split)) == 21
    for index in (21, -22):
        with pytest.raises(IndexError, match=f"image {index} of split validation, which has 21"):
            split[index]


def test_a_split_can_be_pickled(pristine):
    split = open_prepared(pristine, "train")
    data = pickle.dumps(split)
    assert len(data) < 20_000, "the images stay in their file"
    copy = pickle.loads(data)
    assert torch.equal(copy[7].image, split[7].image) and copy.manifest == split.manifest


def test_the_manifest_describes_the_data_set(pristine):
    manifest = read_manifest(pristine)
    assert manifest.splits["train"].images_per_class == (150, 150)
    assert manifest.splits["validation"].images_per_class == (11, 10)
    assert (manifest.resolution, manifest.channels, manifest.dataset) == (SIDE, 3, "noise")
    record = open_prepared(pristine, "validation").record
    assert record == manifest.splits["validation"]


def test_checksums_depend_on_pixels_labels_and_order(tmp_path):
    base = noise(4, 0)
    brighter = [(base[0][0] ^ 1, base[0][1]), *base[1:]]
    relabelled = [(base[0][0], 1), (base[1][0], 0), *base[2:]]
    variants = [base, brighter, relabelled, base[::-1]]
    manifests = [write(tmp_path / str(i), {"train": images}) for i, images in enumerate(variants)]
    assert len({manifest.splits["train"].checksum for manifest in manifests}) == 4
    assert len({manifest.checksum for manifest in manifests}) == 4


def test_two_runs_give_the_same_bytes(pristine, tmp_path):
    write(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(pristine)


ANOTHER_PROCESS = """
import os, pathlib, sys
import numpy as np
from fractal_model.data.digits import prepare_digits
from fractal_model.data.writing import write_prepared
def killed():
    for i in range(250):
        yield np.full((6, 6, 3), i, dtype=np.uint8), 0
    os.kill(os.getpid(), 9)
digits, *interrupted = map(pathlib.Path, sys.argv[1:])
for folder in interrupted:
    child = os.fork()
    if not child:
        write_prepared(folder, dataset="noise", source="", preprocessing="", resolution=6,
                       class_names=["a"], splits={"train": killed()})
    assert os.waitpid(child, 0)[1] == 9
prepare_digits(digits, validation_images=297, seed=2)
"""


@pytest.fixture(scope="module")
def another_process(pristine, tmp_path_factory) -> Path:
    """Return the folder of another process, which wrote `digits` and was killed while it wrote
    `old` and `new`. `old` was the pristine data set before. One process serves both tests, because
    it takes seconds to start."""
    folder = tmp_path_factory.mktemp("another")
    shutil.copytree(pristine, folder / "old")
    targets = [folder / name for name in ("digits", "old", "new")]
    subprocess.run([sys.executable, "-c", ANOTHER_PROCESS, *targets], check=True, cwd=REPOSITORY)
    return folder


def test_digits_in_another_process_have_the_same_bytes(another_process, tmp_path):
    manifest = prepare_digits(tmp_path / "digits", validation_images=297, seed=2)
    assert contents(tmp_path / "digits") == contents(another_process / "digits")
    assert {name: record.images for name, record in manifest.splits.items()} == {
        "train": 1500,
        "validation": 297,
    }
    verify_prepared(tmp_path / "digits")


def test_shards_are_limited_and_read_in_order(pristine, tmp_path):
    manifest = write(tmp_path / "sharded", shard_images=140)
    files = sorted((tmp_path / "sharded" / "train").glob("*.arrow"))
    assert [shard.images for shard in manifest.splits["train"].shards] == [140, 140, 20]
    assert [shard.bytes for shard in manifest.splits["train"].shards] == [
        file.stat().st_size for file in files
    ]
    assert manifest.checksum == read_manifest(pristine).checksum
    verify_prepared(tmp_path / "sharded")
    images, labels = open_prepared(tmp_path / "sharded", "train").load_all()
    expected_images, expected_labels = open_prepared(pristine, "train").load_all()
    assert torch.equal(images, expected_images) and torch.equal(labels, expected_labels)


MANY_SHARDS = """
import resource, sys
from fractal_model.data import prepared
split = prepared.open_prepared(sys.argv[1], "train")
split[0]
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
images = [split[index % len(split)].image for index in range(2 * len(split))]
assert all((one == other).all() for one, other in zip(images, images[len(split):]))
assert len(split.labels()) == len(split)
prepared._OPEN_SHARDS = 1000  # now no shard is closed
try:
    prepared.open_prepared(sys.argv[1], "train").labels()
except ValueError as error:
    print(error)
"""


def test_open_files_are_limited_for_any_number_of_shards(tmp_path):
    write(tmp_path / "many", {"train": noise(400, 0)}, shard_images=1)
    command = [sys.executable, "-c", MANY_SHARDS, str(tmp_path / "many")]
    error = subprocess.run(
        command, check=True, cwd=REPOSITORY, capture_output=True, text=True
    ).stdout
    assert "cannot be read" in error and "Too many open files" in error and "damaged" not in error


def test_hugging_face_datasets_opens_a_split(pristine):
    rows = datasets.load_from_disk(str(pristine / "train"))
    assert rows.features["label"].names == list(CLASSES) and len(rows) == 300
    image, label = noise(300, 0)[7]
    assert (np.array(rows[7]["image"]) == image).all() and rows[7]["label"] == label


def interrupted(error: BaseException):
    yield from noise(250, 5)
    raise error


@pytest.mark.parametrize(
    "error", [FractalError("a source's own words"), OSError("disk"), KeyboardInterrupt("stop")]
)
def test_an_interrupted_run_leaves_no_files(tmp_path, error):
    folder = tmp_path / "data" / "noise"
    with pytest.raises(type(error), match=str(error)):
        write(folder, {"train": noise(3, 0), "validation": interrupted(error)})
    assert list(folder.parent.iterdir()) == []


def test_an_interrupted_run_keeps_the_old_data_set(folder):
    before = contents(folder)
    with pytest.raises(OSError, match="disk"):
        write(folder, {"train": interrupted(OSError("disk"))})
    assert contents(folder) == before
    assert list(folder.parent.iterdir()) == [folder]


def test_a_killed_run_leaves_no_data_set_that_looks_complete(another_process, pristine):
    """After SIGKILL no clean-up runs. The next run removes the files that are left."""
    old, new = another_process / "old", another_process / "new"
    assert all(path.with_name(f".{path.name}.partial").is_dir() for path in (old, new))
    assert contents(old) == contents(pristine)
    with pytest.raises(FractalError, match="no prepared data set"):
        open_prepared(new, "train")
    write(old)
    write(new)
    assert {path.name for path in another_process.iterdir()} == {"digits", "old", "new"}
    assert contents(new) == contents(old) == contents(pristine)


def test_a_run_killed_between_the_renames_loses_no_data_set(folder):
    before = contents(folder)
    folder.rename(folder.with_name(".noise.old"))
    with pytest.raises(OSError, match="disk"):
        write(folder, {"train": interrupted(OSError("disk"))})
    assert contents(folder) == before


def test_writing_again_replaces_the_old_data_set(folder):
    write(folder, {"test": noise(5, 3)})
    assert list(read_manifest(folder).splits) == ["test"]
    assert {path.name for path in folder.iterdir()} == {"test", MANIFEST_NAME}
    assert list(folder.parent.iterdir()) == [folder]


def break_version(manifest):
    manifest.update(format_version=1, something_old=1)


def break_key(manifest):
    manifest["resolutoin"] = 6


def break_count(manifest):
    manifest["splits"]["train"].update(images=301, images_per_class=[151, 150])
    manifest["splits"]["train"]["shards"][0]["images"] = 301


def break_sum(manifest):
    manifest["splits"]["train"].update(images=299)
    manifest["splits"]["train"]["shards"][0]["images"] = 299


def break_shards(manifest):
    manifest["splits"]["train"]["shards"][0]["images"] = 200


def break_path(manifest):
    manifest["splits"]["train"]["shards"][0]["file"] = "../train/data.arrow"


def break_classes(manifest):
    manifest["class_names"] = ["cat", "dog", "cow"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (break_version, r"has format version 1, .* reads 2: .*dvc repro"),
        (
            break_key,
            r"not a readable manifest \(unknown key 'resolutoin', did you mean 'resolution'",
        ),
        (break_shards, r"splits\.train: .*its shards have 200 images, but images is 300"),
        (break_path, r"splits\.train\.shards\.0\.file: String should match"),
        (break_sum, r"splits\.train: .*images_per_class sums to 300, but images is 299"),
        (break_classes, r"split train counts 2 classes, but class_names has 3"),
    ],
)
def test_a_wrong_manifest_is_refused(folder, change, message):
    edit_manifest(folder, change)
    assert_refused(lambda: open_prepared(folder, "train"), message)


def test_a_wrong_number_of_images_is_named(folder):
    edit_manifest(folder, break_count)
    split = open_prepared(folder, "train")
    assert_refused(
        lambda: split[0], r"'train' of .* \(it has 300 images, the manifest says 301\); build"
    )


@pytest.mark.parametrize("text", ["", "{", "[1]", '"text"', "\xff"])
def test_an_unreadable_manifest_is_refused(folder, text):
    (folder / MANIFEST_NAME).write_bytes(text.encode("latin-1"))
    assert_refused(lambda: open_prepared(folder, "train"), "not a readable manifest .*dvc repro")


def test_missing_folders_splits_and_files_are_named(folder, tmp_path):
    assert_refused(
        lambda: open_prepared(tmp_path / "no", "train"), "no prepared data set at .*dvc repro"
    )
    assert_refused(
        lambda: open_prepared(folder, "test"), "no split 'test': choose one of train, valid"
    )
    shutil.rmtree(folder / "train")
    assert_refused(
        lambda: open_prepared(folder, "train"), "split 'train' of .* is damaged: .*No such"
    )
    (folder / MANIFEST_NAME).unlink()
    assert_refused(lambda: open_prepared(folder, "train"), f"has no {MANIFEST_NAME}.*dvc repro")


def test_a_truncated_shard_is_refused(folder):
    shard = folder / "train" / "data-00000.arrow"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:5000])
    assert_refused(
        lambda: open_prepared(folder, "train"),
        f"split 'train' of .* is damaged: .* has 5000 bytes, the manifest says {size}",
    )
    shard.write_bytes(bytes(size))
    assert_refused(lambda: open_prepared(folder, "train")[0], "'train' of .* cannot be opened")


def assert_refused(call, message: str) -> None:
    with pytest.raises(FractalError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def webp(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "WEBP", lossless=True, quality=0, method=0)
    return buffer.getvalue()


def replace_in_shard(folder: Path, old: bytes, new: bytes) -> None:
    shard = folder / "validation" / "data-00000.arrow"
    data = shard.read_bytes()
    assert data.count(old) == 1 and len(old) == len(new)
    shard.write_bytes(data.replace(old, new))


def test_a_changed_pixel_is_named(folder):
    """Only the checksum shows that a valid image has another value in one pixel."""
    image = noise(21, 1)[4][0]
    old = webp(image)
    for value in range(256):
        other = image.copy()
        other[0, 0, 0] = value
        if len(webp(other)) == len(old) and value != image[0, 0, 0]:
            break
    replace_in_shard(folder, old, webp(other))
    open_prepared(folder, "train").load_all()
    assert_refused(lambda: verify_prepared(folder), "'validation' of .* checksum is .*, expected ")


def test_an_undecodable_image_is_named(folder):
    old = webp(noise(21, 1)[4][0])
    replace_in_shard(folder, old, b"\0" * 8 + old[8:])
    split = open_prepared(folder, "validation")
    split[3]
    assert_refused(lambda: split[4], "split 'validation' of .* image 4 cannot be decoded")
    assert_refused(
        lambda: verify_prepared(folder), "split 'validation' of .* image 4 cannot be decoded"
    )


def test_an_image_of_another_size_is_named(folder):
    edit_manifest(folder, lambda manifest: manifest.update(resolution=8))
    assert_refused(
        lambda: open_prepared(folder, "train")[2], r"image 2 has shape \(6, 6, 3\), expected"
    )


def test_a_label_without_a_class_is_named(folder):
    def drop_a_class(manifest):
        manifest["class_names"] = ["cat"]
        for record in manifest["splits"].values():
            record["images_per_class"] = [record["images"]]

    edit_manifest(folder, drop_a_class)
    assert_refused(lambda: verify_prepared(folder), "split 'train' of .* image 1 has label 1")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([(np.zeros((SIDE, SIDE), np.uint8), 0)], r"image 0 of noise/train is uint8 \(6, 6\)"),
        ([(np.zeros((SIDE, SIDE, 3), np.float32), 0)], "image 0 of noise/train is float32"),
        ([*noise(3, 0), (np.zeros((5, 6, 3), np.uint8), 0)], r"image 3 .* is uint8 \(5, 6, 3\)"),
        ([(np.zeros((SIDE, SIDE, 3), np.uint8), 2)], "has label 2, expected 0 to 1"),
        ([(np.zeros((SIDE, SIDE, 3), np.uint8), -1)], "has label -1, expected 0 to 1"),
        ([], "noise/train has no images"),
    ],
)
def test_unfit_images_are_refused(tmp_path, images, message):
    assert_refused(lambda: write(tmp_path / "noise", {"train": iter(images)}), message)
    assert list(tmp_path.iterdir()) == []
