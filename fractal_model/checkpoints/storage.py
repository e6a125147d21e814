"""Checkpoints that are kept in an object store: the way to this machine."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pyarrow.fs import FileSystem, FileType, LocalFileSystem, copy_files

from fractal_model.data.object_store import is_remote


@contextmanager
def fetch_checkpoint(path: str, filesystem: FileSystem | None = None) -> Iterator[Path]:
    """Yield a checkpoint's folder on this machine, copied for the block where it is elsewhere.

    `path` belongs to `filesystem`; without one it is a local path or an address (s3://…). A
    checkpoint that does not exist is a folder that does not exist. OSError: the storage does not
    answer, or this machine's disk is full.
    """
    if filesystem is None and is_remote(path):
        filesystem, path = FileSystem.from_uri(path)
    if filesystem is None or isinstance(filesystem, LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="fractal-fetched-") as scratch:
        folder = Path(scratch) / PurePosixPath(path).name
        if filesystem.get_file_info(path).type == FileType.Directory:
            folder.mkdir()
            copy_files(path, str(folder), source_filesystem=filesystem)
        yield folder
