"""File locks, so that only one process at a time writes to a folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fractal_model.common.errors import FractalError


class LockHeldError(FractalError):
    """Another process holds the lock at this moment."""


@contextmanager
def hold_lock(file: Path, *, wait_seconds: float = 0) -> Iterator[None]:
    """Hold the lock `file` within the block. The system frees the lock if the process dies.
    LockHeldError: another process still holds the lock after `wait_seconds`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(file, timeout=wait_seconds):
            yield
    except Timeout as error:
        raise LockHeldError(
            f"another process is at work here and holds the lock {file}: wait until it ends, or "
            f"stop it"
        ) from error


@contextmanager
def wait_for_lock(file: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock `file` within the block. If another process holds it, call `on_wait` once and
    wait until the lock is free."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def is_held(file: Path) -> bool:
    """True if a process holds the lock `file` now."""
    if not file.exists():
        return False
    try:
        with hold_lock(file):
            return False
    except LockHeldError:
        return True
