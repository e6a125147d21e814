"""Folders that are whole or do not exist: written beside, then renamed."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from fractal_model.common.errors import FractalError, one_line


@contextmanager
def written_whole(folder: Path, what: str) -> Iterator[Path]:
    """Yields an empty folder beside `folder` to write to; becomes `folder` when all went well.

    FractalError, saying that `what` cannot be saved, when the disk is full or not writable;
    nothing that was complete before is touched.
    """
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
        way_out = "free some space" if full else "mend that"
        raise FractalError(
            f"cannot save {what} {folder}: {reason}; {way_out} and run again, what was complete "
            f"before is unharmed"
        ) from error


@contextmanager
def file_written_whole(file: Path) -> Iterator[Path]:
    """Yields a name beside `file` to write to; becomes `file` when all went well, and what was
    there before stays otherwise."""
    partial = file.with_name(f".{file.stem}.partial{file.suffix}")
    try:
        yield partial
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def require_new(folder: Path) -> None:
    """FractalError: the folder exists; what is there is never overwritten."""
    if folder.exists() or folder.is_symlink():
        raise FractalError(
            f"{folder} exists already and is not overwritten: choose another folder, or remove "
            f"it first"
        )


def require_writable_file(file: Path) -> None:
    """Make the file's folder where it is missing. FractalError: nothing can be written there, or
    a folder has the name."""
    if file.is_dir():
        raise FractalError(f"{file} is a folder: give the name of a file")
    require_writable(file.absolute().parent)


def require_writable(folder: Path) -> None:
    """Make the folder where it is missing. FractalError: it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # what permissions say is not all
            pass
    except OSError as error:
        raise FractalError(
            f"the folder {folder} cannot be made or written to ({error.strerror}): choose "
            f"another place"
        ) from error
