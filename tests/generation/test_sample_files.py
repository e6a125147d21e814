"""Files of sampled images: a grid, a folder or an array."""

from __future__ import annotations

import errno
import os
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from fractal_model.common.errors import FractalError
from fractal_model.generation.sample_files import LARGEST_GRID, open_writer
from tests.support import random_images

LABELS = torch.tensor([3, 3, -1, -1])
IMAGES = random_images(4, size=4)


def write(out):
    writer = open_writer(out, LABELS, image_size=4, per_class=2, request="r")
    writer.add(range(2, 4), IMAGES[2:])
    writer.add(range(0, 2), IMAGES[:2])
    writer.finish()


def test_an_array_has_the_form_that_adm_reads(tmp_path):
    write(tmp_path / "new" / "x.npz")
    with np.load(tmp_path / "new" / "x.npz") as arrays:
        assert np.array_equal(arrays["arr_0"], IMAGES.permute(0, 2, 3, 1).numpy())
        assert arrays["arr_0"].dtype == np.uint8
        assert arrays["arr_1"].tolist() == LABELS.tolist()
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["x.npz"]


def test_a_discarded_array_leaves_no_file(tmp_path):
    writer = open_writer(tmp_path / "x.npz", LABELS, image_size=4, per_class=2, request="r")
    writer.add(range(2), IMAGES[:2])
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_has_numbered_files(tmp_path):
    write(tmp_path / "images")
    files = sorted((tmp_path / "images").glob("*.png"))
    assert [file.name for file in files] == ["0.png", "1.png", "2.png", "3.png"]
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    assert np.array_equal(pixels, IMAGES.permute(0, 2, 3, 1).numpy())


def test_a_folder_is_completed_only_by_an_equal_request(tmp_path):
    writer = open_writer(tmp_path / "x", LABELS, image_size=4, per_class=2, request="one")
    assert writer.missing == [0, 1, 2, 3]
    writer.add([2], IMAGES[2:3])
    writer.discard()
    again = open_writer(tmp_path / "x", LABELS, image_size=4, per_class=2, request="one")
    assert again.missing == [0, 1, 3]
    with pytest.raises(FractalError, match="images of another model, class, seed or setting"):
        open_writer(tmp_path / "x", LABELS, image_size=4, per_class=2, request="two")


def test_a_folder_with_other_numbered_images_is_refused(tmp_path):
    (tmp_path / "7.png").touch()
    with pytest.raises(FractalError, match="images of another model"):
        open_writer(tmp_path, LABELS, image_size=4, per_class=2, request="r")


def test_the_way_out_of_another_request_works(tmp_path):
    def open_again(request):
        settings = {"image_size": 4, "per_class": 2, "source": "{}"}
        return open_writer(tmp_path, LABELS, request=request, **settings)

    open_again("one").add([2], IMAGES[2:3])
    for name in ("2.png", "request.sha256"):
        (tmp_path / name).unlink()
    assert open_again("two").missing == [0, 1, 2, 3]


def test_images_are_not_mixed_with_other_files(tmp_path):
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FractalError, match="has other files, such as thesis.tex: choose a new"):
        open_writer(tmp_path, LABELS, image_size=4, per_class=2, request="r")
    assert {file.name for file in tmp_path.iterdir()} == {".DS_Store", "thesis.tex"}
    (tmp_path / "thesis.tex").unlink()
    assert open_writer(tmp_path, LABELS, image_size=4, per_class=2, request="r").missing


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("name", ["x.npz", "x.png", "folder"])
def test_a_full_disk_is_an_error_and_leaves_nothing_half_written(small_disk, name):
    def write_all():
        labels = torch.zeros(200).long()
        writer = open_writer(small_disk / name, labels, image_size=32, per_class=20, request="r")
        writer.add(range(200), random_images(200, size=32))
        writer.finish()

    with pytest.raises(OSError, match="No space left") as raised:
        write_all()
    assert raised.value.errno == errno.ENOSPC
    for file in small_disk.rglob("*.png"):
        Image.open(file).load()
    assert not list(small_disk.rglob("*partial*"))


def test_ctrl_c_while_space_is_reserved_leaves_no_file(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "posix_fallocate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_writer(tmp_path / "x.npz", LABELS, image_size=4, per_class=2, request="r")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


def test_a_grid_has_one_row_for_each_class(tmp_path):
    write(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as grid:
        assert grid.size == (2 * 66 + 2, 2 * 66 + 2)
        pixels = np.asarray(grid)
    assert np.array_equal(pixels[2:66:16, 68:132:16], IMAGES[1].permute(1, 2, 0).numpy())


def test_a_grid_with_too_many_images_is_refused(tmp_path):
    labels = torch.zeros(LARGEST_GRID + 1)
    with pytest.raises(FractalError, match=r"at most 1024; for more choose a folder .*npz"):
        open_writer(tmp_path / "x.png", labels, image_size=4, per_class=2, request="r")


def test_an_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(FractalError, match=r"ending '.jpg': give .png .* .npz .* or a folder"):
        open_writer(tmp_path / "x.jpg", LABELS, image_size=4, per_class=2, request="r")


@pytest.mark.parametrize("name", ["file/x.png", "file/x.npz", "file/folder"])
def test_a_path_below_a_file_is_refused(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(FractalError, match=r"file.* cannot be made .*choose another place"):
        open_writer(tmp_path / name, LABELS, image_size=4, per_class=2, request="r")


def test_a_folder_without_write_permission_is_refused(tmp_path, monkeypatch):
    def refuse(dir):  # root may write anywhere
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(FractalError, match="written to .Permission denied.: choose"):
        open_writer(tmp_path / "x.png", LABELS, image_size=4, per_class=2, request="r")
