"""Raw images of every kind become RGB and are counted, or are left out with a reason."""

import csv
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from fractal_model.common.errors import FractalError
from fractal_model.config.data import PreparationConfig
from fractal_model.config.params import load_params
from fractal_model.data.datasets import prepare_dataset
from fractal_model.data.decoding import UnusableImage
from fractal_model.data.manifest import read_manifest
from fractal_model.data.prepared import open_prepared, verify_prepared
from fractal_model.data.raw_images import RawCounts, prepare_image
from fractal_model.data.report import write_report
from fractal_model.data.shard_job import build_in_processes
from fractal_model.data.sources.registered import register
from tests.support import REPOSITORY
from tests.support import mini_imagenet as mini
from tests.support.icc_profiles import RED_IS_GREEN
from tests.support.picture_files import FLOAT, GREY, png, tiff
from tests.support.preparing import SIDE, expected_crop, prepare


def test_kinds_of_raw_images_are_counted(tmp_path):
    register(mini.write_tree(tmp_path / "raw"), tmp_path / "data", resolutions=(SIDE,))
    prepare(tmp_path / "data")
    counts = json.loads((tmp_path / "data/imagenet16/preparation.json").read_text())["splits"][
        "train"
    ]
    assert counts["formats"] == {"JPEG": 26, "PNG": 1}
    assert counts["modes"] == {"CMYK": 1, "L": 1, "RGB": 25}
    assert (counts["exif_rotated"], counts["misnamed"]) == (1, 1)
    assert sum(counts["short_sides"].values()) == 27


def test_other_kinds_become_rgb(tmp_path, recwarn):
    photograph = mini.photograph(0)
    kinds = {
        "palette.png": mini.encode(photograph.quantize(16), "PNG"),
        "alpha.png": mini.encode(photograph.convert("RGBA"), "PNG"),
        "bilevel.tiff": mini.encode(photograph.convert("1"), "TIFF"),
        "moving.gif": mini.encode(photograph, "GIF", save_all=True, append_images=[photograph]),
        "tiny.png": mini.encode(mini.photograph(1, 1, 1), "PNG"),
        "corrupt-exif.jpg": mini.encode(photograph, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\1"),
    }
    split = open_prepared(prepare_folder(tmp_path, kinds), "train")
    assert not [warning for warning in recwarn if warning.category is UserWarning]
    for example, name in zip(split.in_order(), sorted(kinds), strict=True):
        pixels = example.image.permute(1, 2, 0).numpy()
        assert (pixels == expected_crop(kinds[name])).all(), name


def register_folder(tmp_path: Path, files: dict[str, bytes], **options: str) -> None:
    for name, content in files.items():
        mini.put(tmp_path / "raw/train/one" / name, content)
        mini.put(tmp_path / "raw/validation/one" / name, content)
    register(tmp_path / "raw", tmp_path / "data", name="kinds", resolutions=(SIDE,), **options)


def prepare_folder(tmp_path: Path, files: dict[str, bytes], **options: str) -> Path:
    """Prepare a folder with these files as a class in both splits, and return the data set."""
    register_folder(tmp_path, files, **options)
    prepare(tmp_path / "data", source="kinds", share=0.9)
    return tmp_path / "data/imagenet16"


ODD = {
    "deep.png": png(SIDE, 16, GREY, struct.pack(f">{SIDE}H", *range(0, 257 * SIDE, 257)), SIDE),
    "float.tiff": tiff(2, 32, struct.pack("<2f", 0, 1), kind=FLOAT),
    "hidden.png": mini.encode(PIL.Image.new("RGBA", (SIDE, SIDE), (255, 0, 0, 0)), "PNG"),
    "large.png": mini.encode(PIL.Image.new("RGB", (SIDE, SIDE), (1, 2, 3)), "PNG"),
    "small.png": mini.encode(PIL.Image.new("RGB", (SIDE, SIDE - 1), (4, 5, 6)), "PNG"),
}


def test_a_users_folder_is_read_as_a_viewer_shows_it(tmp_path):
    folder = prepare_folder(tmp_path, ODD)
    images = [example.image for example in open_prepared(folder, "train").in_order()]
    deep, hidden, large, small = images
    assert (deep == torch.arange(SIDE)).all(), "257 / 65,535 is 1 / 255"
    assert (hidden == 255).all()
    assert (large.permute(1, 2, 0) == torch.tensor([1, 2, 3])).all()
    assert (small.permute(1, 2, 0) == torch.tensor([4, 5, 6])).all()
    left_out = read_manifest(folder).quarantined
    assert {entry.file for entry in left_out} == {
        "train/one/float.tiff",
        "validation/one/float.tiff",
    }
    assert "save it with 8 bits a channel" in left_out[0].reason


def test_conversions_are_in_the_report(tmp_path):
    frames = [PIL.Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue")]
    moving = mini.encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    swapped, broken = (
        mini.encode(frames[0], "PNG", icc_profile=profile) for profile in (RED_IS_GREEN, b"x")
    )
    more = {"moving.gif": moving, "swapped.png": swapped, "broken.png": broken}
    folder = prepare_folder(tmp_path, ODD | more)
    write_report(folder, tmp_path / "report")
    rows = csv.DictReader((tmp_path / "report/kinds.csv").open())
    images = {(row["kind"], row["value"]): row["images"] for row in rows if row["split"] == "train"}
    assert images["transparency", "laid on white"] == "1"
    assert images["size", "smaller than the resolution, enlarged"] == "1"
    assert images["fit", "crop"] == "7"
    assert images["ICC profile", "converted to sRGB"] == "1"
    assert images["ICC profile", "unreadable, ignored"] == "1"
    assert images["frames", "several, the first is taken"] == "1"
    assert images["mode", "I;16"] == "1"


def test_transparent_parts_are_laid_on_the_chosen_colour(tmp_path):
    checksums = {}
    for background, rgb in {
        "white": [255] * 3,
        "black": [0] * 3,
        "#10A0fF": [16, 160, 255],
    }.items():
        folder = prepare_folder(tmp_path / background, ODD, background=background)
        hidden = [example.image for example in open_prepared(folder, "train").in_order()][1]
        assert (hidden.permute(1, 2, 0) == torch.tensor(rgb)).all()
        manifest, name = read_manifest(folder), background.lower()
        assert f"in sRGB, on {name}, 16-bit grey scaled; ADM centre crop" in manifest.preprocessing
        checksums[background] = manifest.checksum
        write_report(folder, tmp_path / "report")
        assert (
            f"train,transparency,laid on {name},1\n" in (tmp_path / "report/kinds.csv").read_text()
        )
    assert len(set(checksums.values())) == 3
    again = prepare_folder(tmp_path / "again", ODD, background="#FFFFFF")
    assert read_manifest(again).checksum == checksums["white"]


def test_white_and_the_crop_leave_manifest_and_description_as_they_were(tmp_path):
    """Data sets that exist need no new preparation."""
    folder = prepare_folder(tmp_path, ODD, background="white", fit="crop")
    assert read_manifest(folder).preprocessing == (
        "Pictures version 2: turned by EXIF, in sRGB, on white, 16-bit grey scaled; ADM centre "
        "crop version 1: RGB, halved by box, bicubic to the short side, centre; 16 px"
    )
    description = json.loads((tmp_path / "data/sources/kinds.json").read_text())
    assert not {"background", "fit", "label"} & description.keys()


@pytest.mark.parametrize(
    ("fit", "corner", "enlarged", "words"),
    [
        ("crop", (255, 0, 0), "1", "ADM centre crop version 1"),
        ("pad", (0, 0, 0), "0", "Pad version 1: RGB, bicubic to the long side, centred on black"),
        ("squash", (255, 0, 0), "1", "Squash version 1"),
    ],
)
def test_a_long_picture_becomes_a_square_as_chosen(tmp_path, fit, corner, enlarged, words):
    long = mini.encode(PIL.Image.new("RGB", (SIDE, SIDE // 2), (255, 0, 0)), "PNG")
    folder = prepare_folder(tmp_path, {"1.png": long}, fit=fit, background="black")
    (example,) = open_prepared(folder, "train").in_order()
    assert tuple(example.image[:, 0, 0].tolist()) == corner
    assert tuple(example.image[:, SIDE // 2, 0].tolist()) == (255, 0, 0)
    assert f"; {words}" in read_manifest(folder).preprocessing
    write_report(folder, tmp_path / "report")
    kinds = (tmp_path / "report/kinds.csv").read_text()
    assert f"train,fit,{fit},1\n" in kinds
    assert f'train,size,"smaller than the resolution, enlarged",{enlarged}\n' in kinds


def test_conversions_are_printed(tmp_path, capsys):
    register_folder(tmp_path, ODD, background="black")
    params = load_params(REPOSITORY / "params.yaml")
    changed = {
        "paths": params.paths.model_copy(update={"data": tmp_path / "data"}),
        "preparation": PreparationConfig(max_quarantined_share=0.9, processes=1),
    }
    prepare_dataset(params.model_copy(update=changed), "kinds", build_in_processes)
    printed = capsys.readouterr()
    lines = (printed.out + printed.err).splitlines()
    assert "kinds: 2 images smaller than 16 px, enlarged" in lines
    assert "kinds: 2 images transparent in places, laid on black" in lines


def test_imagenet_is_read_as_adm_reads_it(tmp_path):
    folder = mini.write_tree(tmp_path / "raw")
    hidden = folder / "train/n01440764/n01440764_1.JPEG"
    hidden.write_bytes(ODD["hidden.png"])
    register(folder, tmp_path / "data", resolutions=(SIDE,))
    manifest = prepare(tmp_path / "data")
    images = [e.image for e in open_prepared(tmp_path / "data/imagenet16", "train").in_order()]
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)
    assert (images[1].permute(1, 2, 0) == red).all(), "a viewer would show white"
    turned = (folder / "train/n01440764/n01440764_4.JPEG").read_bytes()
    assert (images[4].permute(1, 2, 0).numpy() == expected_crop(turned)).all(), (
        "EXIF does not turn it"
    )
    assert manifest.preprocessing.startswith("ADM centre crop version 1: RGB, halved")


def damaged_tree(root: Path) -> Path:
    mini.write_tree(root)
    folder = root / "train/n02012849"
    whole = mini.encode(mini.photograph(5))
    (folder / "n02012849_0.JPEG").write_bytes(whole[: len(whole) // 2])
    (folder / "n02012849_1.JPEG").write_bytes(b"<html>not found</html>")
    (folder / "n02012849_2.JPEG").write_bytes(b"")
    (folder / "n02012849_3.JPEG").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9")
    bomb = PIL.Image.new("1", (12_000, 12_000))
    (folder / "n02012849_4.JPEG").write_bytes(mini.encode(bomb, "PNG"))
    return root


REASONS = {
    "n02012849_0.JPEG": "damaged: ",
    "n02012849_1.JPEG": "not an image of JPEG, PNG,",
    "n02012849_2.JPEG": "the file is empty",
    "n02012849_3.JPEG": "not an image of JPEG, PNG,",
    "n02012849_4.JPEG": "more than 89,478,485 pixels, perhaps a decompression bomb",
}


def test_damaged_images_are_left_out_with_the_reason(tmp_path):
    register(damaged_tree(tmp_path / "raw"), tmp_path / "data", resolutions=(SIDE,))
    manifest = prepare(tmp_path / "data", share=0.2)
    reasons = {Path(entry.file).name: entry.reason for entry in manifest.quarantined}
    assert reasons.keys() == REASONS.keys()
    for name, reason in REASONS.items():
        assert reasons[name].startswith(reason)
    assert manifest.splits["train"].images_per_class == (9, 4, 9)
    verify_prepared(tmp_path / "data/imagenet16")


def test_too_many_damaged_images_fail(tmp_path):
    data = tmp_path / "data"
    register(damaged_tree(tmp_path / "raw"), data, resolutions=(SIDE,))
    with pytest.raises(FractalError) as raised:
        prepare(data, share=0.1)
    message = str(raised.value)
    assert message.startswith("5 of 33 images of imagenet16 cannot be used (15.15%, at most 10.00%")
    assert "max_quarantined_share" in message and "\n" not in message
    table = (data / "imagenet16-quarantined.csv").read_text()
    assert all(name in table for name in REASONS)
    assert not (data / "imagenet16").exists()
    prepare(data, share=0.2)
    assert not (data / "imagenet16-quarantined.csv").exists()


def prepare_and_count(content: bytes, name: str = "one/x.jpg") -> tuple[PIL.Image.Image, RawCounts]:
    counts = RawCounts()
    return prepare_image(content, name, SIDE, counts), counts


CORRUPT_EXIF = [
    b"Exif\0\0garbage!",
    b"Exif\0\0II*\0",
    b"Exif\0\0II",
    b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\x02\0\0\0\4abcd",
]


@pytest.mark.parametrize("exif", CORRUPT_EXIF)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_intact_image_with_corrupt_exif_is_used(kind, exif):
    content = mini.encode(mini.photograph(0), kind, exif=exif, dpi=(72, 72))
    image, counts = prepare_and_count(content)
    assert (np.asarray(image) == expected_crop(content)).all()
    assert counts.formats == {kind: 1} and counts.exif_rotated + counts.exif_unreadable <= 1


@pytest.mark.parametrize("exif", CORRUPT_EXIF[:2])
def test_unreadable_exif_is_counted(exif):
    content = mini.encode(mini.photograph(0), "JPEG", exif=exif, dpi=(72, 72))
    _, counts = prepare_and_count(content)
    assert (counts.exif_unreadable, counts.exif_rotated) == (1, 0)


def test_a_jpeg_of_several_pictures_is_not_misnamed():
    photograph = mini.photograph(0)
    content = mini.encode(photograph, "MPO", save_all=True, append_images=[photograph])
    for name, misnamed in (("one/x.jpg", 0), ("one/x.JPEG", 0), ("one/x.png", 1)):
        _, counts = prepare_and_count(content, name)
        assert counts.formats == {"MPO": 1} and counts.misnamed == misnamed


@pytest.mark.parametrize("size", [(400_000, 1), (1, 400_000), (60_000_000, 1)])
def test_an_image_of_extreme_aspect_ratio_is_left_out(size):
    """The crop would enlarge both sides in the same ratio, which would need gigabytes."""
    content = mini.encode(PIL.Image.new("L", size), "PNG")
    with pytest.raises(
        UnusableImage,
        match=f"{size[0]} × {size[1]} pixels: resizing it for the crop needs more than",
    ):
        prepare_and_count(content)


def test_a_long_image_that_fits_is_used():
    content = mini.encode(PIL.Image.effect_noise((3000, 2), 50), "PNG")
    assert (np.asarray(prepare_and_count(content)[0]) == expected_crop(content)).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM"])
def test_random_bytes_give_a_reason_or_an_image(kind):
    """Any error of a decoder becomes UnusableImage."""
    random = np.random.default_rng(0)
    whole, refused = mini.encode(mini.photograph(0), kind), 0
    for _ in range(300):
        content = bytearray(whole)
        for place in random.integers(0, min(len(content), 300), random.integers(1, 8)):
            content[place] = random.integers(256)
        try:
            assert prepare_and_count(bytes(content))[0].size == (SIDE, SIDE)
        except UnusableImage:
            refused += 1
    assert refused


@pytest.mark.parametrize("error", [TypeError("odd"), MemoryError(), ZeroDivisionError("x\ny")])
def test_every_error_of_a_decoder_is_a_reason(monkeypatch, error):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(PIL.Image, "open", fail)
    with pytest.raises(UnusableImage, match="^damaged: [^\n]+$"):
        prepare_and_count(b"anything")


PREPARE_AND_MEASURE = r"""
import re, sys
from pathlib import Path
from fractal_model.data.preparation import prepare_source
from fractal_model.config.data import PreparationConfig
from fractal_model.data.shard_job import build_in_processes
manifest = prepare_source(
    Path(sys.argv[1]), "large", source="large", resolution=64,
    settings=PreparationConfig(max_quarantined_share=0, processes=1),
    run_jobs=lambda jobs: build_in_processes(jobs, 1),
)
assert manifest.splits["train"].images == 2
# getrusage would include the peak of the process that started this one.
print(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak memory is read from Linux's /proc"
)
def test_the_largest_images_fit_in_memory(tmp_path):
    """The images have 88 million pixels, the limit, in formats whose decoders need most memory."""
    folder, size = tmp_path / "raw", (9_400, 9_400)
    webp = mini.encode(PIL.Image.new("RGBA", size), "WEBP", lossless=True, quality=0, method=0)
    jpeg = mini.encode(PIL.Image.new("CMYK", size), "JPEG", progressive=True, subsampling=0)
    mini.put(folder / "train/one/large.webp", webp)
    mini.put(folder / "train/one/large.jpg", jpeg)
    mini.put(folder / "validation/one/small.jpg", mini.encode(mini.photograph(0)))
    register(folder, tmp_path / "data", name="large", resolutions=(64,))
    command = [sys.executable, "-c", PREPARE_AND_MEASURE, str(tmp_path / "data")]
    peak_kib = subprocess.run(
        command, check=True, cwd=REPOSITORY, capture_output=True, text=True
    ).stdout
    assert int(peak_kib) < 1.65 * 2**20, "well under 2 GiB"
