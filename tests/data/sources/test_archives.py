"""The official archives: refused members, and archives that are damaged."""

import io
import tarfile
from pathlib import Path

import pytest

from fractal_model.data.sources.archives import list_archives
from fractal_model.data.sources.imagenet import Companions
from fractal_model.data.sources.listing import LARGEST_IMAGE
from fractal_model.data.sources.registered import register
from tests.support import mini_imagenet as mini
from tests.support.listings import assert_refused
from tests.support.litter import LITTER

TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


def special(name: str, kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_unusable_archive_members_are_refused_with_a_reason(tmp_path):
    root, inner = mini.write_archives(tmp_path / "raw"), io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        mini.add(archive, "n01440764_1.JPEG", b"image")
        mini.add(archive, "sub/n01440764_1.JPEG", b"another")
        mini.add(archive, "../../n01440764_2.JPEG", b"outside")
        mini.add(archive, "/n01440764_3.JPEG", b"outside")
        mini.add(archive, "n02012849_4.JPEG", b"elsewhere")
        mini.add(archive, "n01440764_5.JPEG", b"")
        archive.addfile(special("n01440764_6.JPEG", tarfile.SYMTYPE))
        archive.addfile(special("n01440764_7.JPEG", tarfile.LNKTYPE, "n01440764_1.JPEG"))
        archive.addfile(special("n01440764_8.JPEG", tarfile.CHRTYPE))
        archive.addfile(special("folder", tarfile.DIRTYPE))
    outer = mini.tar_of({"n01440764.tar": inner.getvalue(), "cats.tar": b"", "readme": b"x"})
    (root / "ILSVRC2012_img_train.tar").write_bytes(outer)
    builder = list_archives(root, Companions(), lambda done: None)
    reasons = {entry.file: entry.reason for entry in builder.refused if entry.split == "train"}
    link = "a link, a device or a sparse file: not an ordinary one"
    assert reasons == {
        "n01440764/n01440764_1.JPEG": "there are two files of this name",
        "n01440764/../../n01440764_2.JPEG": "its path leaves the archive",
        "n01440764//n01440764_3.JPEG": "its path leaves the archive",
        "n01440764/n02012849_4.JPEG": "its name says class n02012849, it is in n01440764",
        "n01440764/n01440764_5.JPEG": "the file is empty",
        "n01440764/n01440764_6.JPEG": link,
        "n01440764/n01440764_7.JPEG": link,
        "n01440764/n01440764_8.JPEG": link,
        "cats.tar": "expected an archive named after a class, such as n01440764.tar",
        "readme": "expected an archive named after a class, such as n01440764.tar",
    }
    assert len(builder) == 1, "without a ground truth no validation image is listed"


@pytest.mark.parametrize("cut", [700, 20_000, -20_000])
def test_an_archive_that_is_cut_off_is_refused(tmp_path, cut):
    root = mini.write_archives(tmp_path / "raw")
    file = root / "ILSVRC2012_img_train.tar"
    file.write_bytes(file.read_bytes()[:cut])
    assert_refused(
        lambda: register(root, tmp_path / "data"),
        "img_train.tar.* not a complete, uncompressed tar",
    )


def members(content: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return archive.getmembers()


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (0, "is cut off at byte"),
        (200, "is cut off at byte"),
        (512, "is cut off within ILSVRC2012_val_00000004.JPEG"),
        (700, "is cut off within ILSVRC2012_val_00000004.JPEG"),
    ],
)
def test_an_archive_that_is_cut_off_around_a_header_is_refused(tmp_path, cut, message):
    """`tarfile` alone does not notice a cut between two members or inside a header."""
    root = mini.write_archives(tmp_path / "raw")
    content = (root / VALIDATION).read_bytes()
    (root / VALIDATION).write_bytes(content[: members(content)[3].offset + cut])
    assert_refused(
        lambda: register(root, tmp_path / "data"), f"img_val.tar is not a complete.*{message}"
    )


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"\xff" * 512, "the header at byte .* is damaged"),
        (b"\0" * 512, "after byte .*, where it seems to end, there is more"),
    ],
)
def test_a_damaged_header_does_not_end_the_listing(tmp_path, header, message):
    root = mini.write_archives(tmp_path / "raw")
    content = bytearray((root / VALIDATION).read_bytes())
    at = members(content)[3].offset
    content[at : at + 512] = header
    (root / VALIDATION).write_bytes(content)
    assert_refused(
        lambda: register(root, tmp_path / "data"), f"img_val.tar is not a complete.*{message}"
    )


def test_a_negative_size_causes_no_endless_loop(tmp_path):
    root = mini.write_archives(tmp_path / "raw")
    content = bytearray((root / VALIDATION).read_bytes())
    header = members(content)[3]
    header.size = -1536
    at = header.offset
    content[at : at + 512] = header.tobuf(tarfile.GNU_FORMAT)[-512:]
    (root / VALIDATION).write_bytes(content)
    assert_refused(
        lambda: register(root, tmp_path / "data"), "img_val.tar is not a complete.*cut off within"
    )


def inner(root: Path) -> tuple[bytearray, int, int]:
    """Return the training archive, and where a header and the end of its second class are in it."""
    content = bytearray((root / TRAIN).read_bytes())
    outer = members(content)[1]
    start = outer.offset_data
    inside = members(content[start : start + outer.size])
    return content, start + inside[4].offset, start + outer.size


@pytest.mark.parametrize("damage", ["header", "zeros", "end"])
def test_damage_inside_a_class_is_named(tmp_path, damage):
    root = mini.write_archives(tmp_path / "raw")
    content, header, end = inner(root)
    if damage == "end":
        content[header:end] = b"\xff" * (end - header)
    else:
        content[header : header + 512] = (b"\xff" if damage == "header" else b"\0") * 512
    (root / TRAIN).write_bytes(content)
    message = "damaged" if damage != "zeros" else "there is more"
    assert_refused(
        lambda: register(root, tmp_path / "data"),
        f"img_train.tar at byte .* not a complete.*{message}",
    )


def test_each_image_of_a_misnamed_archive_is_refused(tmp_path):
    root = mini.write_archives(tmp_path / "raw")
    classes = {f"{wnid}.tar": mini.tar_of(files) for wnid, files in mini.train_images().items()}
    classes["crane.tar"] = classes.pop("n02012849.tar")
    classes["n09999999.tar"] = mini.tar_of({})
    (root / TRAIN).write_bytes(mini.tar_of(classes))
    source, listing = register(root, tmp_path / "data")
    assert source.images["train"] == 18 and source.refused == 9
    assert {entry.reason for entry in listing.refused} == {
        "in crane.tar: expected an archive named after a class, such as n01440764.tar"
    }
    assert listing.refused[0].file == "crane/n02012849_0.JPEG"
    assert listing.unused == ("train/crane", "train/n09999999")
    assert "images of train/n09999999 that can be used" in source.missing


def test_members_too_large_to_be_images_are_refused_unread(tmp_path):
    root = mini.write_archives(tmp_path / "raw")
    header, size = tarfile.TarInfo("ILSVRC2012_val_00000001.JPEG"), LARGEST_IMAGE + 1
    header.size = size
    with (root / VALIDATION).open("wb") as file:  # a hole in the file, no disk is used
        file.write(header.tobuf())
        file.seek(-(-size // 512) * 512, 1)
        others = {n: c for n, (_, c) in mini.validation_images().items() if n != header.name}
        file.write(mini.tar_of(others))
    source, listing = register(root, tmp_path / "data")
    assert source.images["validation"] == 5
    assert [(entry.file, entry.reason) for entry in listing.refused] == [
        (header.name, "it has 268,435,457 bytes, at most 268,435,456 are read as an image")
    ]


def test_names_that_are_not_utf8_are_refused(tmp_path):
    root = mini.write_archives(tmp_path / "raw")
    name = b"n01440764_caf\xe9.JPEG".decode("utf-8", "surrogateescape")
    classes = {f"{wnid}.tar": mini.tar_of(files) for wnid, files in mini.train_images().items()}
    classes["n01440764.tar"] = mini.tar_of({name: b"image", "n01440764_1.JPEG": b"image"})
    (root / TRAIN).write_bytes(mini.tar_of(classes))
    _, listing = register(root, tmp_path / "data")
    assert [(entry.file, entry.reason) for entry in listing.refused] == [
        (
            r"n01440764/n01440764_caf\xe9.JPEG",
            "its name is not UTF-8 or has control characters: rename it",
        )
    ]


def test_litter_in_archives_is_ignored(tmp_path):
    root = mini.write_archives(tmp_path / "raw")
    before = register(root, tmp_path / "data")[0]
    image = mini.encode(mini.photograph(0))
    litter = {f"{folder}{name}": image for name in LITTER for folder in ("", "./sub/")}
    classes = {
        f"{wnid}.tar": mini.tar_of(litter | files) for wnid, files in mini.train_images().items()
    }
    outer = litter | classes | {"._n01440764.tar": b"x", "@eaDir/n01440764.tar": image}
    (root / TRAIN).write_bytes(mini.tar_of(outer))
    validation = {name: content for name, (_, content) in mini.validation_images().items()}
    (root / VALIDATION).write_bytes(mini.tar_of(litter | validation))
    after = register(root, tmp_path / "data")[0]
    assert after.images == before.images and after.refused == 0
    assert after.missing == before.missing
