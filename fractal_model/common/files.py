"""Atomic files and folders: written under a temporary name, renamed when complete."""

import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError

from fractal_model.common.errors import FractalError, one_line

CACHE_VARIABLE = "FRACTAL_CACHE"
"""Environment variable with the folder for files that are fetched from other machines."""
_CHUNK = 1 << 22  # bytes read at a time


def cache_folder() -> Path:
    """Return the folder for files that are fetched from other machines: the value of FRACTAL_CACHE,
    else `fractal-model` in XDG_CACHE_HOME, else `~/.cache/fractal-model`."""
    if folder := os.environ.get(CACHE_VARIABLE):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fractal-model"


@contextmanager
def atomic_folder(folder: Path, content: str) -> Iterator[Path]:
    """Yield an empty folder beside `folder` to write to, and rename it to `folder` after the block.
    `content` is the name of what is saved, such as "the checkpoint", for the error message.
    FractalError: the disk is full or not writable."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(folder)
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        free = shutil.disk_usage(folder.parent if folder.parent.exists() else Path("/")).free
        full = getattr(error, "errno", None) == errno.ENOSPC or "o space left" in str(error)
        reason = f"the disk is full ({free / 1e9:.1f} GB free)" if full else one_line(error)
        way_out = "free some space" if full else "remove the cause"
        raise FractalError(
            f"cannot save {content} {folder}: {reason}; {way_out} and run again, complete files "
            f"are kept"
        ) from error


@contextmanager
def atomic_file(file: Path, *, unique: bool = False) -> Iterator[Path]:
    """Yield a hidden path beside `file` to write to, and rename it to `file` if no error occurs.
    With `unique` the hidden name is random, so that two processes never write to the same one."""
    suffix = f".{uuid4().hex}" if unique else ""
    partial = file.with_name(f".{file.stem}{suffix}.partial{file.suffix}")
    try:
        yield partial
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def remove_partial_files(folder: Path) -> None:
    """Remove the unfinished files that `atomic_file` left in `folder` when a process was killed."""
    for file in folder.glob(".*.partial*"):
        file.unlink(missing_ok=True)


def sha256(file: Path, progress: Callable[[int], None] = lambda done: None) -> str:
    """SHA-256 of a file, in hexadecimal. `progress` receives the number of bytes read so far."""
    require_regular_file(file)
    checksum, done = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            checksum.update(chunk)
            progress(done := done + len(chunk))
    return checksum.hexdigest()


def require_regular_file(file: Path) -> None:
    """Raise OSError if the path leads to a pipe, which may never send data, or to a device, which
    may never end. Call it before opening a file that the user gives."""
    mode = file.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # Opening a folder fails by itself.
        raise OSError(errno.EINVAL, "it is not a regular file", str(file))


def require_new(folder: Path) -> None:
    """Raise FractalError if the folder exists, because results are never overwritten."""
    if folder.exists() or folder.is_symlink():
        raise FractalError(
            f"{folder} exists already and is not overwritten: choose another name, or remove "
            f"it first"
        )


def require_writable_file(file: Path) -> None:
    """Make the folder of `file` if it is missing. FractalError: no file can be written in it."""
    if file.is_dir():
        raise FractalError(f"{file} is a folder: give the name of a file")
    require_writable(file.absolute().parent)


def require_writable(folder: Path) -> None:
    """Make the folder if it is missing. FractalError: it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # a folder's permissions alone do not prove that
            pass
    except OSError as error:
        raise FractalError(
            f"the folder {folder} cannot be made or written to ({error.strerror}): choose "
            f"another place"
        ) from error
