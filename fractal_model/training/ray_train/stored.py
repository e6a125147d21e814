"""A run's checkpoints in its storage, a folder or an object store: the way there and back.

Decided here: an object store cannot rename, so the marker is copied after all the rest; what has
none was never whole. Rank 0 chooses what all ranks resume from, and before they do they compare
what they have read, so that a machine that sees something else ends the run instead of spoiling it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import pyarrow.fs
import ray.train

from fractal_model.checkpoints.checkpoint import MARKER, Checkpoint, load_checkpoint
from fractal_model.common.errors import FractalError, one_line
from fractal_model.training.collectives import from_rank_zero, of_all_ranks

Value = TypeVar("Value")

FOLDERS = "checkpoint_"
"""How Ray's names of a run's checkpoints begin; they sort by age."""


@dataclass(frozen=True)
class Resumed:
    """What all ranks go on from."""

    checkpoint: Checkpoint
    damaged: tuple[str, ...]
    """Of each newer checkpoint that was passed over: which, and what is wrong with it."""


def load_newest_whole(
    newest: ray.train.Checkpoint, context: ray.train.TrainContext | None = None
) -> Resumed:
    """This checkpoint, or where it is damaged the next older whole one beside it; called by all
    ranks together.

    FractalError, on all ranks: none is whole (of the newest), the storage does not answer, or the
    ranks do not read the same.
    """
    context = context or ray.train.get_context()
    choice = from_rank_zero(_choose(newest) if context.get_world_rank() == 0 else None)
    chosen, damaged = _or_raise(choice)
    with _on_this_machine(chosen, context) as folder:
        found = _load(folder, chosen)
        marks = of_all_ranks(_mark(found, folder))
    if len(set(marks)) > 1:
        other = next(rank for rank, mark in enumerate(marks) if mark != marks[0])
        raise FractalError(
            f"the ranks do not read the same checkpoint {chosen.path}: rank 0 finds {marks[0]}, "
            f"rank {other} finds {marks[other]}; every machine must see the same storage, mend "
            f"that and run again"
        )
    return Resumed(_or_raise(found), damaged)


def remove_incomplete(
    filesystem: pyarrow.fs.FileSystem, run: str, kept: frozenset[str] = frozenset()
) -> None:
    """Remove the run's checkpoints that never got their marker, as the upload was killed; none of
    those named in `kept`."""
    for name in _names(filesystem, run):
        marker = filesystem.get_file_info(f"{run}/{name}/{MARKER}")
        if marker.type == pyarrow.fs.FileType.NotFound and name not in kept:
            filesystem.delete_dir(f"{run}/{name}")


def _choose(
    newest: ray.train.Checkpoint,
) -> tuple[ray.train.Checkpoint, tuple[str, ...]] | FractalError:
    run, name = newest.path.rstrip("/").rsplit("/", 1)
    damaged: list[FractalError] = []
    try:
        older = [other for other in _names(newest.filesystem, run) if other < name]
        for candidate in (name, *reversed(older)):
            stored = ray.train.Checkpoint(f"{run}/{candidate}", newest.filesystem)
            with _fetched(stored) as folder:
                found = _load(folder, stored)
            if isinstance(found, Checkpoint):
                return stored, tuple(map(str, damaged))
            damaged.append(found)
    except OSError as error:
        return _unreachable(newest, error)
    return damaged[0]


def _names(filesystem: pyarrow.fs.FileSystem, run: str) -> list[str]:
    """Of the checkpoint folders of a run, oldest first."""
    found = filesystem.get_file_info(pyarrow.fs.FileSelector(run, allow_not_found=True))
    folders = (info.base_name for info in found if info.type == pyarrow.fs.FileType.Directory)
    return sorted(name for name in folders if name.startswith(FOLDERS))


def _load(folder: Path, stored: ray.train.Checkpoint) -> Checkpoint | FractalError:
    """The error names the checkpoint by where it is kept, not by where it was fetched to."""
    try:
        return load_checkpoint(folder)
    except FractalError as error:
        return FractalError(str(error).replace(str(folder), stored.path))


def _mark(found: Checkpoint | FractalError, folder: Path) -> str:
    """The marker is a checksum of all."""
    if isinstance(found, FractalError):
        return str(found)
    return f"position {found.progress.position}, checksum {(folder / MARKER).read_text()[:16]}"


@contextmanager
def _on_this_machine(
    stored: ray.train.Checkpoint, context: ray.train.TrainContext
) -> Iterator[Path]:
    """A folder that holds it, fetched once a machine where it is in an object store. The block has
    to wait for all ranks before it ends."""
    with ExitStack() as stack:
        mine: Path | FractalError | None = None
        if context.get_local_rank() == 0:
            try:
                mine = stack.enter_context(_fetched(stored))
            except OSError as error:
                mine = _unreachable(stored, error)
        told = of_all_ranks((context.get_node_rank(), mine))
        folders = {node: _or_raise(folder) for node, folder in told if folder is not None}
        yield folders[context.get_node_rank()]


@contextmanager
def _fetched(stored: ray.train.Checkpoint) -> Iterator[Path]:
    """OSError: the storage does not answer. What is not there is a folder that is not there."""
    if isinstance(stored.filesystem, pyarrow.fs.LocalFileSystem):
        yield Path(stored.path)
        return
    with tempfile.TemporaryDirectory(prefix="fractal-fetched-") as scratch:
        folder = Path(scratch) / PurePosixPath(stored.path).name
        there = stored.filesystem.get_file_info(stored.path).type
        if there == pyarrow.fs.FileType.Directory:
            folder.mkdir()
            pyarrow.fs.copy_files(stored.path, str(folder), source_filesystem=stored.filesystem)
        yield folder


def _unreachable(stored: ray.train.Checkpoint, error: OSError) -> FractalError:
    return FractalError(
        f"the checkpoint {stored.path} cannot be fetched ({one_line(error)}): check the storage "
        f"and this machine's disk, then run again"
    )


def _or_raise(answer: Value | FractalError) -> Value:
    if isinstance(answer, FractalError):
        raise answer
    return answer
