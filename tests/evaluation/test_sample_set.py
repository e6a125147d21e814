"""Sets of samples in files: they are read as written, and refused if they do not fit a protocol."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fractal_model.common.errors import FractalError
from fractal_model.evaluation.sample_set import open_sample_set, require_protocol
from fractal_model.generation.sample_files import open_writer
from tests.support import random_images
from tests.support.litter import write_litter
from tests.support.picture_files import RGB, png
from tests.support.protocols import SETTINGS, manifest, protocol

IMAGES = random_images(12, size=8)
LABELS = torch.arange(4).repeat_interleave(3)
FEW = SETTINGS.model_copy(update={"samples_per_class": 3})


def write(out, images=IMAGES, labels=LABELS):
    writer = open_writer(out, labels, image_size=images.shape[-1], per_class=3, request="a request")
    writer.add(range(len(labels)), images)
    writer.finish()
    return out


def protocol_of(settings=FEW, classes=4):
    return protocol(settings, of=manifest(classes=classes))


@pytest.mark.parametrize("name", ["folder", "x.npz"])
def test_a_set_survives_writing_and_reading(tmp_path, name):
    samples = open_sample_set(write(tmp_path / name))
    assert samples.side == 8 and samples.labels.equal(LABELS)
    assert samples.images(range(12)).equal(IMAGES)
    assert samples.images([7, 2]).equal(IMAGES[[7, 2]])
    require_protocol(samples, protocol_of(), "the set")


def test_a_compressed_array_is_read(tmp_path):
    np.savez_compressed(
        tmp_path / "x.npz", IMAGES.permute(0, 2, 3, 1).numpy(), LABELS.int().numpy()
    )
    assert open_sample_set(tmp_path / "x.npz").images([11, 0]).equal(IMAGES[[11, 0]])


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (protocol_of(SETTINGS), "12 images, the protocol of noise asks for 120"),
        (protocol_of(classes=12), "has 12 images, the protocol of noise asks for 36"),
    ],
)
def test_a_set_with_another_number_of_images_is_refused(tmp_path, protocol, message):
    with pytest.raises(FractalError, match=f"{message}.*or ask for a preview"):
        require_protocol(open_sample_set(write(tmp_path / "x")), protocol, "the set")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3], "not balanced, it has 4 of class 0 and 2 of"),
        ([0, 0, 0, 1, 1, 1, 2, 2, 2, -1, -1, -1], "3 images of unknown classes such as -1, the"),
        ([0, 0, 0, 1, 1, 1, 2, 2, 2, 4, 4, 4], "3 images of unknown classes such as 4, the"),
    ],
)
def test_an_unbalanced_set_is_refused(tmp_path, labels, message):
    samples = open_sample_set(write(tmp_path / "x", labels=torch.tensor(labels)))
    with pytest.raises(FractalError, match=message):
        require_protocol(samples, protocol_of(), "the set")


def test_a_set_of_another_resolution_is_refused(tmp_path):
    samples = open_sample_set(write(tmp_path / "x", images=random_images(12, size=4)))
    with pytest.raises(FractalError, match="images of 4 px, the data set noise of 8 px"):
        require_protocol(samples, protocol_of(), "the set")


def replace_by(content):
    return lambda file: file.write_bytes(content)


def save(mode, size):
    return lambda file: Image.new(mode, size).save(file)


RGB_16_BITS = png(8, 16, RGB, bytes(48), 8)
TRANSPARENT_COLOUR = png(8, 8, RGB, bytes(24), 8, tRNS=bytes(6))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("05.png", lambda file: file.unlink(), r"lacks 1 file \(05.png\), expected 12 images"),
        ("12.png", save("RGB", (8, 8)), r"also holds 1 file \(12.png\)"),
        (".05.partial.png", save("RGB", (8, 8)), "also holds 1 file"),
        ("labels.npy", lambda file: file.unlink(), "does not state the classes of its images"),
        ("labels.npy", replace_by(b"x"), "labels.npy is damaged"),
        (
            "labels.npy",
            lambda file: np.save(file, np.zeros(12)),
            "float64 .12,., expected int",
        ),
        ("05.png", save("L", (8, 8)), "05.png is L of 8 × 8 px"),
        ("05.png", save("RGBA", (8, 8)), "05.png is RGBA of 8 × 8 px"),
        ("05.png", save("I;16", (8, 8)), "05.png is I;16B of 8 × 8 px"),
        ("05.png", replace_by(RGB_16_BITS), "05.png is RGB;16B of 8 × 8 px, expected 8-bit RGB"),
        ("05.png", replace_by(TRANSPARENT_COLOUR), "05.png is RGB with transparency of 8 × 8 px"),
        ("05.png", save("RGB", (4, 4)), "RGB of 4 × 4 px, expected 8-bit RGB of 8 × 8 px"),
        ("00.png", save("RGB", (8, 4)), "RGB of 8 × 4 px, expected 8-bit RGB squares"),
        ("05.png", replace_by(b"no picture"), "05.png is damaged"),
    ],
)
def test_a_folder_that_is_no_complete_set_is_refused(tmp_path, name, change, message):
    change(write(tmp_path / "x") / name)
    with pytest.raises(FractalError, match=message) as raised:
        open_sample_set(tmp_path / "x")
    assert "\n" not in str(raised.value)


def test_files_of_the_operating_system_do_not_belong_to_a_set(tmp_path):
    write_litter(write(tmp_path / "x"), b"x")
    samples = open_sample_set(tmp_path / "x")
    assert samples.labels.equal(LABELS) and samples.images(range(12)).equal(IMAGES)


def test_a_truncated_png_is_an_error_when_it_is_read(tmp_path):
    file = write(tmp_path / "x") / "05.png"
    file.write_bytes(file.read_bytes()[:-60])
    samples = open_sample_set(tmp_path / "x")
    with pytest.raises(FractalError, match="05.png is damaged"):
        samples.images(range(12))


PIXELS = IMAGES.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": PIXELS}, "holds no samples"),
        ({"arr_1": LABELS.numpy()}, "holds no samples"),
        ({"arr_0": np.full((12, 8, 8, 3), np.nan), "arr_1": LABELS.numpy()}, "of float64"),
        ({"arr_0": PIXELS[:, :4], "arr_1": LABELS.numpy()}, r"uint8 \(12, 4, 8, 3\)"),
        ({"arr_0": PIXELS[:9], "arr_1": LABELS.numpy()}, "and 12 classes, expected"),
        (
            {"arr_0": PIXELS, "arr_1": np.zeros((12, 4))},
            "expected integers .N,., the class",
        ),
    ],
)
def test_an_array_that_is_no_complete_set_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(FractalError, match=message):
        open_sample_set(tmp_path / "x.npz")


@pytest.mark.parametrize("name", ["none", "none.npz", "none.txt"])
def test_a_missing_set_is_refused(tmp_path, name):
    with pytest.raises(FractalError, match="holds no samples"):
        open_sample_set(tmp_path / name)


def test_a_truncated_array_is_refused(tmp_path):
    file = write(tmp_path / "x.npz")
    file.write_bytes(file.read_bytes()[:900])
    with pytest.raises(FractalError, match="holds no samples .*not a zip file"):
        open_sample_set(file)
