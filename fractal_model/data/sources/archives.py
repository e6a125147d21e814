"""ImageNet's two official archives, read where they are: nothing is unpacked.

The training archive holds an archive a class. Neither level is compressed, so that an image is a
stretch of bytes of the outer file.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from fractal_model.data.sources.imagenet import (
    WNID,
    Companions,
    validation_class,
    wrong_class,
)
from fractal_model.data.sources.listing import TRAIN, VALIDATION, ListingBuilder
from fractal_model.errors import FractalError, one_line

TRAIN_ARCHIVE = "ILSVRC2012_img_train.tar"
VALIDATION_ARCHIVE = "ILSVRC2012_img_val.tar"

Progress = Callable[[int], None]


def list_archives(root: Path, companions: Companions, progress: Progress) -> ListingBuilder:
    """Every member of the archives in `root`, by its headers alone.

    Raises FractalError when an archive is cut off or is none.
    """
    builder = ListingBuilder()
    archive = root / TRAIN_ARCHIVE
    if archive.is_file():
        for member, reason in _members(archive):
            name = PurePosixPath(member.name)
            if reason is None and (name.suffix != ".tar" or not WNID.fullmatch(name.stem)):
                reason = "expected an archive named after a class, such as n01440764.tar"
            if reason is not None:
                builder.refuse(TRAIN, member.name, reason)
                continue
            _list_class(archive, member, name.stem, builder)
            progress(len(builder))
    archive = root / VALIDATION_ARCHIVE
    if archive.is_file():
        for member, reason in _members(archive):
            name = PurePosixPath(member.name).name
            class_id = validation_class(name, companions)
            if reason is None and member.size == 0:
                reason = "the file is empty"
            if reason is None and class_id is None:
                reason = "the ground truth does not name its class"
            if reason is not None:
                builder.refuse(VALIDATION, member.name, reason)
                continue
            place = (archive.name, member.offset_data, member.size)
            builder.add(VALIDATION, class_id, name, *place)
            progress(len(builder))
    return builder


def _list_class(
    archive: Path, inner: tarfile.TarInfo, class_id: str, builder: ListingBuilder
) -> None:
    stretch = (inner.offset_data, inner.size)
    for member, reason in _members(archive, stretch):
        name = PurePosixPath(member.name).name
        if reason is None and member.size == 0:
            reason = "the file is empty"
        reason = reason or wrong_class(name, class_id)
        if reason is not None:
            builder.refuse(TRAIN, f"{class_id}/{member.name}", reason)
        else:
            offset = inner.offset_data + member.offset_data
            builder.add(TRAIN, class_id, name, archive.name, offset, member.size)


def _members(
    archive: Path, stretch: tuple[int, int] | None = None
) -> Iterator[tuple[tarfile.TarInfo, str | None]]:
    """The files of an archive, or of the one within it, each with why it is refused."""
    inner = f" at byte {stretch[0]}" if stretch else ""
    try:
        with archive.open("rb") as outer:
            file = _Stretch(outer, *stretch) if stretch else outer
            size = stretch[1] if stretch else archive.stat().st_size
            # "r:" refuses what is compressed.
            with tarfile.open(fileobj=file, mode="r:") as opened:
                while (member := opened.next()) is not None:
                    opened.members.clear()  # which would grow to every member of the archive
                    if member.isdir():
                        continue
                    if member.offset_data + member.size > size:
                        raise tarfile.ReadError(f"it is cut off within {member.name}")
                    yield member, _refusal(member)
    except (tarfile.TarError, OSError) as error:
        raise FractalError(
            f"{archive}{inner} is no whole, uncompressed tar archive ({one_line(error)}): compare "
            f"its size and checksum with the publisher's and fetch it again"
        ) from error


def _refusal(member: tarfile.TarInfo) -> str | None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        return "its path leaves the archive"
    if not member.isfile():
        return "a link or a device, not a file"
    return None


class _Stretch:
    """Part of a file as a file: what `tarfile` asks of one."""

    def __init__(self, file, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + {0: 0, 1: self._at, 2: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        self._file.seek(self._start + self._at)
        content = self._file.read(left if size < 0 else min(size, left))
        self._at += len(content)
        return content
