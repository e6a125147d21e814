"""List the images in ImageNet's two official archives without unpacking them.

The training archive contains one archive per class. Nothing is compressed, so each image is a range
of bytes in one of the two official archives.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.litter import is_litter
from fractal_model.data.sources.imagenet import WNID, Companions, class_refusal, validation_class
from fractal_model.data.sources.listing import (
    NO_TRUTH,
    TRAIN,
    VALIDATION,
    ListingBuilder,
    Progress,
    size_refusal,
)

TRAIN_ARCHIVE = "ILSVRC2012_img_train.tar"
VALIDATION_ARCHIVE = "ILSVRC2012_img_val.tar"
_NO_CLASS = "expected an archive named after a class, such as n01440764.tar"
_END_BLOCK = 2**20  # bytes read at a time


def list_archives(root: Path, companions: Companions, progress: Progress) -> ListingBuilder:
    """List the images of ImageNet's archives in `root` from the tar headers alone. `companions` has
    the validation images' classes. FractalError: an archive is cut off, damaged or not a tar."""
    builder = ListingBuilder(companions.names)
    if (root / TRAIN_ARCHIVE).is_file():
        _list_train(root / TRAIN_ARCHIVE, builder, progress)
    if (root / VALIDATION_ARCHIVE).is_file():
        _list_validation(root / VALIDATION_ARCHIVE, companions, builder, progress)
    return builder


def _list_train(archive: Path, builder: ListingBuilder, progress: Progress) -> None:
    for opened, member, reason in _members(archive):
        name = PurePosixPath(member.name)
        if not reason and (name.suffix != ".tar" or member.size == 0):
            reason = _NO_CLASS
        if reason:
            builder.refuse(TRAIN, member.name, reason)
        else:
            _list_class(archive, opened, member, builder)
        progress(len(builder))


def _list_class(
    archive: Path, outer: tarfile.TarFile, inner: tarfile.TarInfo, builder: ListingBuilder
) -> None:
    """List the images in the archive `inner` of one class, which lies in the open archive `outer`.
    If the name of `inner` is not a class, refuse each image."""
    class_id, before = PurePosixPath(inner.name).stem, len(builder)
    misnamed = None if WNID.fullmatch(class_id) else f"in {inner.name}: {_NO_CLASS}"
    for _, member, reason in _members(archive, outer, inner):
        name = PurePosixPath(member.name).name
        reason = reason or size_refusal(member.size) or misnamed or class_refusal(name, class_id)
        if reason:
            builder.refuse(TRAIN, f"{class_id}/{member.name}", reason)
        else:
            offset = inner.offset_data + member.offset_data
            builder.add(TRAIN, class_id, name, archive.name, offset, member.size)
    if len(builder) == before:
        builder.note_unused(TRAIN, class_id)


def _list_validation(
    archive: Path, companions: Companions, builder: ListingBuilder, progress: Progress
) -> None:
    for _, member, reason in _members(archive):
        name = PurePosixPath(member.name).name
        class_id = validation_class(name, companions)
        reason = reason or size_refusal(member.size)
        if reason or not class_id:
            builder.refuse(VALIDATION, member.name, reason or NO_TRUTH)
        else:
            builder.add(VALIDATION, class_id, name, archive.name, member.offset_data, member.size)
        progress(len(builder))


def _members(
    archive: Path, outer: tarfile.TarFile | None = None, inner: tarfile.TarInfo | None = None
) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo, str | None]]:
    """Yield for each file in an archive: the open archive, the file's header, and the reason why
    the file is refused or None. The archive is the file `archive` or, if `inner` is given, the
    member `inner` of the open archive `outer`. Litter (see `is_litter`) is left out."""
    place = f" at byte {inner.offset_data}" if inner else ""
    try:
        size = inner.size if inner else archive.stat().st_size
        with (
            tarfile.ExFileObject(outer, inner) if outer and inner else archive.open("rb") as file,
            tarfile.open(fileobj=file, mode="r:") as opened,  # "r:" refuses compressed archives.
        ):
            while (member := opened.next()) is not None:
                # Otherwise the list would grow to all members. typeshed does not know it.
                opened.members.clear()  # type: ignore[attr-defined]
                if member.size < 0 or member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"it is cut off within {member.name}")
                if not member.isdir() and not any(map(is_litter, PurePosixPath(member.name).parts)):
                    yield opened, member, _refusal(member)
            _require_end(file, opened.offset)
    except (tarfile.TarError, OSError, ValueError) as error:  # A damaged header raises ValueError.
        raise FractalError(
            f"{archive}{place} is not a complete, uncompressed tar archive ({one_line(error)}): "
            f"compare its size and checksum with the publisher's and fetch it again"
        ) from error


def _require_end(file: BinaryIO, offset: int) -> None:
    """Raise ReadError unless the archive `file` has zeros, and nothing else, from byte `offset` on.
    `tarfile` does not check it: it takes a cut or a damaged header for the end of the archive."""
    file.seek(offset)
    first = file.read(tarfile.BLOCKSIZE)
    if len(first) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it is cut off at byte {offset}, before its end")
    if first.strip(b"\0"):
        raise tarfile.ReadError(f"the header at byte {offset} is damaged")
    while block := file.read(_END_BLOCK):
        if block.strip(b"\0"):
            raise tarfile.ReadError(f"after byte {offset}, where it seems to end, there is more")


def _refusal(member: tarfile.TarInfo) -> str | None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        return "its path leaves the archive"
    if not member.isfile() or member.issparse():
        return "a link, a device or a sparse file: not an ordinary one"
    return None
