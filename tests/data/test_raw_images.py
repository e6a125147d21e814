"""Raw images of every kind: RGB as Pillow makes it, counted, left out with a reason, in bounds."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from fractal_model.common.errors import FractalError
from fractal_model.data.prepared import open_prepared, verify_prepared
from fractal_model.data.raw_images import RawCounts, UnusableImage, decoding_rules
from fractal_model.data.raw_images import cropped as prepared_image
from fractal_model.data.sources.registered import register
from tests.support import REPOSITORY
from tests.support import mini_imagenet as mini
from tests.support.preparing import SIDE, cropped, prepare


def test_kinds_of_raw_images_are_counted(tmp_path):
    register(mini.write_tree(tmp_path / "raw"), tmp_path / "data", resolutions=(SIDE,))
    prepare(tmp_path / "data")
    found = json.loads((tmp_path / "data/imagenet16/preparation.json").read_text())["splits"][
        "train"
    ]
    assert found["formats"] == {"JPEG": 26, "PNG": 1}
    assert found["modes"] == {"CMYK": 1, "L": 1, "RGB": 25}
    assert (found["exif_rotated"], found["misnamed"]) == (1, 1)
    assert sum(found["short_sides"].values()) == 27


def test_other_kinds_become_rgb_as_pillow_does(tmp_path, recwarn):
    photograph, folder = mini.photograph(0), tmp_path / "raw"
    grey16 = PIL.Image.fromarray(np.linspace(0, 65535, 50 * 37).reshape(37, 50).astype(np.uint16))
    kinds = {
        "palette.png": mini.encoded(photograph.quantize(16), "PNG"),
        "alpha.png": mini.encoded(photograph.convert("RGBA"), "PNG"),
        "grey16.png": mini.encoded(grey16, "PNG"),
        "bilevel.tiff": mini.encoded(photograph.convert("1"), "TIFF"),
        "moving.gif": mini.encoded(photograph, "GIF", save_all=True, append_images=[photograph]),
        "tiny.png": mini.encoded(mini.photograph(1, 1, 1), "PNG"),
        "corrupt-exif.jpg": mini.encoded(photograph, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\1"),
    }
    for name, content in kinds.items():
        mini.put(folder / "train/one" / name, content)
        mini.put(folder / "validation/one" / name, content)
    register(folder, tmp_path / "data", name="kinds", resolutions=(SIDE,))
    prepare(tmp_path / "data", source="kinds")
    assert not [warning for warning in recwarn if warning.category is UserWarning]
    split = open_prepared(tmp_path / "data/imagenet16", "train")
    for example, name in zip(split.in_order(), sorted(kinds), strict=True):
        found = example.image.permute(1, 2, 0).numpy()
        assert (found == cropped(kinds[name])).all(), name


def damaged_tree(REPOSITORY: Path) -> Path:
    mini.write_tree(REPOSITORY)
    folder = REPOSITORY / "train/n02012849"
    whole = mini.encoded(mini.photograph(5))
    (folder / "n02012849_0.JPEG").write_bytes(whole[: len(whole) // 2])
    (folder / "n02012849_1.JPEG").write_bytes(b"<html>not found</html>")
    (folder / "n02012849_2.JPEG").write_bytes(b"")
    (folder / "n02012849_3.JPEG").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9")
    bomb = PIL.Image.new("1", (12_000, 12_000))
    (folder / "n02012849_4.JPEG").write_bytes(mini.encoded(bomb, "PNG"))
    return REPOSITORY


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
    found = {Path(entry.file).name: entry.reason for entry in manifest.quarantined}
    assert found.keys() == REASONS.keys()
    for name, reason in REASONS.items():
        assert found[name].startswith(reason)
    assert manifest.splits["train"].images_per_class == (9, 4, 9)
    verify_prepared(tmp_path / "data/imagenet16")


def test_too_many_damaged_images_fail(tmp_path):
    data = tmp_path / "data"
    register(damaged_tree(tmp_path / "raw"), data, resolutions=(SIDE,))
    with pytest.raises(FractalError) as caught:
        prepare(data, share=0.1)
    message = str(caught.value)
    assert message.startswith("5 of 33 images of imagenet16 cannot be used (15.15%, at most 10.00%")
    assert "max_quarantined_share" in message and "\n" not in message
    table = (data / "imagenet16-quarantined.csv").read_text()
    assert all(name in table for name in REASONS)
    assert not (data / "imagenet16").exists()
    prepare(data, share=0.2)
    assert not (data / "imagenet16-quarantined.csv").exists()


def prepared_and_counts(
    content: bytes, name: str = "one/x.jpg"
) -> tuple[PIL.Image.Image, RawCounts]:
    counts = RawCounts()
    with decoding_rules():
        return prepared_image(content, name, SIDE, counts), counts


CORRUPT_EXIF = [
    b"Exif\0\0garbage!",
    b"Exif\0\0II*\0",
    b"Exif\0\0II",
    b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\x02\0\0\0\4abcd",
]


@pytest.mark.parametrize("exif", CORRUPT_EXIF)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_corrupt_exif_leaves_no_intact_image_out(kind, exif):
    content = mini.encoded(mini.photograph(0), kind, exif=exif, dpi=(72, 72))
    image, counts = prepared_and_counts(content)
    assert (np.asarray(image) == cropped(content)).all()
    assert counts.formats == {kind: 1} and counts.exif_rotated + counts.exif_unreadable <= 1


@pytest.mark.parametrize("exif", CORRUPT_EXIF[:2])
def test_unreadable_exif_is_counted(exif):
    content = mini.encoded(mini.photograph(0), "JPEG", exif=exif, dpi=(72, 72))
    _, counts = prepared_and_counts(content)
    assert (counts.exif_unreadable, counts.exif_rotated) == (1, 0)


def test_photographs_of_several_pictures_are_no_misnamed_jpeg():
    photograph = mini.photograph(0)
    content = mini.encoded(photograph, "MPO", save_all=True, append_images=[photograph])
    for name, misnamed in (("one/x.jpg", 0), ("one/x.JPEG", 0), ("one/x.png", 1)):
        _, counts = prepared_and_counts(content, name)
        assert counts.formats == {"MPO": 1} and counts.misnamed == misnamed


@pytest.mark.parametrize("size", [(400_000, 1), (1, 400_000), (60_000_000, 1)])
def test_extreme_aspect_ratio_is_left_out(size):
    """The crop would enlarge the long side with the short one, to gigabytes."""
    content = mini.encoded(PIL.Image.new("L", size), "PNG")
    with pytest.raises(UnusableImage, match=f"{size[0]} × {size[1]} pixels, whose crop would pass"):
        prepared_and_counts(content)


def test_a_long_image_that_fits_is_used():
    content = mini.encoded(PIL.Image.effect_noise((3000, 2), 50), "PNG")
    assert (np.asarray(prepared_and_counts(content)[0]) == cropped(content)).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_bytes_changed_at_random_are_a_reason_or_an_image(kind):
    """Decoders raise what they like: nothing but UnusableImage comes through."""
    random = np.random.default_rng(0)
    whole, refused = mini.encoded(mini.photograph(0), kind), 0
    for _ in range(300):
        content = bytearray(whole)
        for place in random.integers(0, min(len(content), 300), random.integers(1, 8)):
            content[place] = random.integers(256)
        try:
            assert prepared_and_counts(bytes(content))[0].size == (SIDE, SIDE)
        except UnusableImage:
            refused += 1
    assert refused


@pytest.mark.parametrize("error", [TypeError("odd"), MemoryError(), ZeroDivisionError("x\ny")])
def test_whatever_a_decoder_raises_is_a_reason(monkeypatch, error):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(PIL.Image, "open", fail)
    with pytest.raises(UnusableImage, match="^damaged: [^\n]+$"):
        prepared_and_counts(b"anything")


PREPARE_AND_MEASURE = r"""
import re, sys
from pathlib import Path
from fractal_model.data.preparation import prepare_source
from fractal_model.config.data import PreparationConfig
from fractal_model.data.shard_job import in_processes
manifest = prepare_source(
    Path(sys.argv[1]), "large", source="large", resolution=64,
    settings=PreparationConfig(max_quarantined_share=0, processes=1),
    run_jobs=lambda jobs: in_processes(jobs, 1),
)
assert manifest.splits["train"].images == 2
# Not getrusage's, which begins with the peak of the process that started this one.
print(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak of memory is read from Linux's /proc"
)
def test_the_largest_images_fit_in_memory(tmp_path):
    """Of 88 million pixels, the limit: kinds whose decoders hold the most beside the image."""
    folder, size = tmp_path / "raw", (9_400, 9_400)
    webp = mini.encoded(PIL.Image.new("RGBA", size), "WEBP", lossless=True, quality=0, method=0)
    jpeg = mini.encoded(PIL.Image.new("CMYK", size), "JPEG", progressive=True, subsampling=0)
    mini.put(folder / "train/one/large.webp", webp)
    mini.put(folder / "train/one/large.jpg", jpeg)
    mini.put(folder / "validation/one/small.jpg", mini.encoded(mini.photograph(0)))
    register(folder, tmp_path / "data", name="large", resolutions=(64,))
    command = [sys.executable, "-c", PREPARE_AND_MEASURE, str(tmp_path / "data")]
    found = subprocess.run(
        command, check=True, cwd=REPOSITORY, capture_output=True, text=True
    ).stdout
    assert int(found) < 1.65 * 2**20, "well under 2 GiB"
