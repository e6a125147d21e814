"""Read the bytes of single images from a source, without loading more than a few at a time."""

import os
import weakref
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fractal_model.common.errors import one_line
from fractal_model.data.sources.listing import LARGEST_IMAGE, WHOLE_FILE, ImageFile

_OPEN_FILES = 8
_READ_AHEAD = 2**20


class SourceReader:
    """Reads images of the source in `root`. It keeps a few files open. In a parquet file it also
    keeps its position, so that reading the rows of a row group in order is fast."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open = lru_cache(_OPEN_FILES)(lambda file: _Descriptor(root / file))
        self._parquet = lru_cache(_OPEN_FILES)(lambda file: open_parquet(root / file))
        self._place: tuple[str, int, int] | None = None
        """File, row group and row of the image that `_batches` yields next; None if no file is
        being read, or after an error."""
        self._batches: Iterator[pa.Array] = iter(())

    def read(self, image: ImageFile) -> bytes:
        """Return the bytes of an image. Raises OSError when they cannot be read, are fewer than
        listed, or are more than LARGEST_IMAGE."""
        if image.file.endswith(".parquet") and image.offset != WHOLE_FILE:
            return self._read_row(image.file, image.offset, image.size)
        if image.offset == WHOLE_FILE:
            with (self._root / image.file).open("rb") as opened:
                _require_size(image.file, os.fstat(opened.fileno()).st_size)
                return opened.read()
        content = os.pread(self._open(image.file).number, image.size, image.offset)
        if len(content) != image.size:
            raise OSError(f"{image.file} ends {image.size - len(content)} bytes too early")
        return content

    def _read_row(self, file: str, group: int, row: int) -> bytes:
        before, self._place = self._place, None  # After an error there is no position.
        position = before[2] if before and before[:2] == (file, group) else None
        try:
            if position is None or row < position:
                self._batches, position = image_batches(self._parquet(file), group), 0
            for _ in range(row - position):
                next(self._batches)
            content = next(self._batches)[0].as_py() or b""
        except StopIteration:
            raise OSError(f"row group {group} of {file} ends before row {row}") from None
        except (pa.ArrowException, OSError, IndexError) as error:
            raise OSError(
                f"row group {group} of {file} cannot be read: {one_line(error)}"
            ) from error
        self._place = (file, group, row + 1)
        _require_size(file, len(content))
        return content


class _Descriptor:
    """A file open for reading. It is closed when this object is garbage-collected."""

    def __init__(self, file: Path) -> None:
        self.number = os.open(file, os.O_RDONLY)
        weakref.finalize(self, os.close, self.number)


def open_parquet(file: Path) -> pq.ParquetFile:
    """Open a parquet file to read it in pieces, not a whole row group at once."""
    return pq.ParquetFile(file, buffer_size=_READ_AHEAD, pre_buffer=False)


def image_batches(opened: pq.ParquetFile, group: int) -> Iterator[pa.Array]:
    """Iterate over the rows of a row group. Each row gives an array with one element, the bytes of
    the row's image; images are read one at a time."""
    batches = opened.iter_batches(
        batch_size=1, row_groups=[group], columns=["image.bytes"], use_threads=False
    )
    return (batch.column("image").field("bytes") for batch in batches)


def _require_size(file: str, size: int) -> None:
    if size > LARGEST_IMAGE:
        raise OSError(f"an image in {file} has {size:,} bytes, more than {LARGEST_IMAGE:,}")
