"""Reading one image's bytes from where they are."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fractal_model.data.sources.listing import WHOLE_FILE, ImageFile

_OPEN_FILES = 8


class SourceReader:
    """Keeps a few files open, and one row group of a parquet file in memory."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open = lru_cache(_OPEN_FILES)(lambda file: (root / file).open("rb"))
        self._parquet = lru_cache(_OPEN_FILES)(lambda file: pq.ParquetFile(root / file))
        self._row_group = lru_cache(1)(self._read_row_group)

    def read(self, image: ImageFile) -> bytes:
        """Raises OSError, also for what is shorter than it was when it was listed."""
        if image.file.endswith(".parquet"):
            return self._row_group(image.file, image.offset)[image.size].as_py() or b""
        if image.offset == WHOLE_FILE:
            return (self._root / image.file).read_bytes()
        content = os.pread(self._open(image.file).fileno(), image.size, image.offset)
        if len(content) != image.size:
            raise OSError(f"{image.file} ends {image.size - len(content)} bytes too early")
        return content

    def _read_row_group(self, file: str, group: int) -> pa.ChunkedArray:
        try:
            table = self._parquet(file).read_row_group(group, columns=["image.bytes"])
        except pa.ArrowException as error:
            raise OSError(f"row group {group} of {file} cannot be read: {error}") from error
        return table.flatten()["image.bytes"]
