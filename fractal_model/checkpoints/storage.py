"""Fetching a checkpoint from an object store to this machine."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pyarrow.fs import FileSystem, FileType, LocalFileSystem, copy_files

from fractal_model.data.object_store import is_remote


@contextmanager
def fetch_checkpoint(path: str, filesystem: FileSystem | None = None) -> Iterator[Path]:
    """Yield the folder of a checkpoint on this machine. A checkpoint in an object store is copied
    to a temporary folder, which is removed after the `with` block.

    `path` lies in `filesystem`. If that is None, `path` is a local path or an address (s3://…). If
    there is no checkpoint, the yielded folder does not exist. OSError: the storage does not answer,
    or the disk is full."""
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
