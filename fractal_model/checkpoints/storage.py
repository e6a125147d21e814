"""Checkpoints in a folder or an object store: fetch them to this machine, store them there.

Decided here: an object store cannot rename, so the marker of a stored checkpoint is written last.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pyarrow import ArrowException
from pyarrow.fs import FileSystem, FileType, LocalFileSystem, copy_files

from fractal_model.checkpoints.checkpoint import MARKER
from fractal_model.common.errors import FractalError, one_line
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


@contextmanager
def store_checkpoint(place: str) -> Iterator[Path]:
    """Yield a new folder to which the `with` block writes a checkpoint. `place` is that folder, or
    an address (s3://…) to which the checkpoint is copied after the block. FractalError: the object
    store does not take it."""
    if not is_remote(place):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="fractal-stored-") as scratch:
        folder = Path(scratch) / "checkpoint"
        yield folder
        try:
            _upload(folder, *FileSystem.from_uri(place))
        except (OSError, ArrowException) as error:
            raise _storage_error(place, error) from error


def _upload(folder: Path, filesystem: FileSystem, path: str) -> None:
    filesystem.create_dir(path)
    names = sorted(file.name for file in folder.iterdir() if file.name != MARKER)
    for name in (*names, MARKER):
        copy_files(
            str(folder / name),
            f"{path}/{name}",
            destination_filesystem=filesystem,
            use_threads=False,  # Threads may hang in an upload: apache/arrow issue 32372.
        )


def is_complete(place: str) -> bool:
    """True if the folder or address `place` has a checkpoint with its marker. FractalError: the
    storage does not answer."""
    if not is_remote(place):
        return (Path(place) / MARKER).is_file()
    try:
        filesystem, path = FileSystem.from_uri(place)
        return filesystem.get_file_info(f"{path}/{MARKER}").type == FileType.File
    except (OSError, ArrowException) as error:
        raise _storage_error(place, error) from error


def _storage_error(address: str, error: Exception) -> FractalError:
    return FractalError(
        f"the storage does not answer at {address} ({one_line(error)}): check the address, the "
        f"access to it and the network, and run again"
    )
