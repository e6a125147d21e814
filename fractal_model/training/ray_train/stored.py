"""The checkpoints in a run's storage: which one to resume from, and which ones to remove.

Decided here: an object store cannot rename, so the marker is uploaded after all other files; a
checkpoint without it was never whole. Rank 0 chooses what all ranks resume from. Before they do,
the ranks compare what they have read: a machine that sees other files ends the run instead of
spoiling it.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray.train
from pyarrow.fs import FileSelector, FileSystem, FileType

from fractal_model.checkpoints.checkpoint import MARKER, Checkpoint, load_checkpoint
from fractal_model.checkpoints.storage import fetch_checkpoint
from fractal_model.common.errors import FractalError, one_line
from fractal_model.training.collectives import Value, broadcast_from_rank_zero, gather_from_ranks

FOLDERS = "checkpoint_"
"""How Ray's names of a run's checkpoints begin; they sort by age."""


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that all ranks go on from."""

    checkpoint: Checkpoint
    damaged: tuple[str, ...]
    """What is wrong with each newer checkpoint that was passed over."""


def load_newest_whole(
    newest: ray.train.Checkpoint, context: ray.train.TrainContext | None = None
) -> Resumed:
    """Load this checkpoint, or if it is damaged the next older whole one beside it; all ranks call
    this together.

    FractalError, on all ranks: none is whole (of the newest), the storage does not answer, or the
    ranks do not read the same.
    """
    context = context or ray.train.get_context()
    is_zero = context.get_world_rank() == 0
    choice = broadcast_from_rank_zero(
        _choose(newest) if is_zero else FractalError("rank 0 chooses")
    )
    chosen, damaged = _or_raise(choice)
    with _on_this_machine(chosen, context) as folder:
        checkpoint = _load(folder, chosen)
        contents = gather_from_ranks(_describe(checkpoint, folder))
    if len(set(contents)) > 1:
        other = next(rank for rank, content in enumerate(contents) if content != contents[0])
        raise FractalError(
            f"the ranks do not read the same checkpoint {chosen.path}: rank 0 finds {contents[0]}, "
            f"rank {other} finds {contents[other]}; every machine must see the same storage, mend "
            f"that and run again"
        )
    return Resumed(_or_raise(checkpoint), damaged)


def remove_incomplete(filesystem: FileSystem, run: str, kept: frozenset[str] = frozenset()) -> None:
    """Remove the run's checkpoints that have no marker, because their upload was killed; keep those
    named in `kept`."""
    for name in _names(filesystem, run):
        marker = filesystem.get_file_info(f"{run}/{name}/{MARKER}")
        if marker.type == FileType.NotFound and name not in kept:
            filesystem.delete_dir(f"{run}/{name}")


def _choose(
    newest: ray.train.Checkpoint,
) -> tuple[ray.train.Checkpoint, tuple[str, ...]] | FractalError:
    """The newest whole checkpoint, and what is wrong with the newer ones; else why there is none,
    returned instead of raised so that it reaches all ranks."""
    run, name = newest.path.rstrip("/").rsplit("/", 1)
    damaged: list[FractalError] = []
    try:
        older = [other for other in _names(newest.filesystem, run) if other < name]
        for candidate in (name, *reversed(older)):
            stored = ray.train.Checkpoint(f"{run}/{candidate}", newest.filesystem)
            with fetch_checkpoint(stored.path, stored.filesystem) as folder:
                checkpoint = _load(folder, stored)
            if isinstance(checkpoint, Checkpoint):
                return stored, tuple(map(str, damaged))
            damaged.append(checkpoint)
    except OSError as error:
        return _unreachable(newest, error)
    return damaged[0]


def _names(filesystem: FileSystem, run: str) -> list[str]:
    """The names of a run's checkpoint folders, oldest first."""
    infos = filesystem.get_file_info(FileSelector(run, allow_not_found=True))
    folders = (info.base_name for info in infos if info.type == FileType.Directory)
    return sorted(name for name in folders if name.startswith(FOLDERS))


def _load(folder: Path, stored: ray.train.Checkpoint) -> Checkpoint | FractalError:
    """The error names the checkpoint by where it is kept, not by where it was fetched to."""
    try:
        return load_checkpoint(folder)
    except FractalError as error:
        return FractalError(str(error).replace(str(folder), stored.path))


def _describe(checkpoint: Checkpoint | FractalError, folder: Path) -> str:
    """What was read, as a text that ranks can compare: the marker is a checksum of all files."""
    if isinstance(checkpoint, FractalError):
        return str(checkpoint)
    marker = (folder / MARKER).read_text()
    return f"position {checkpoint.progress.position}, checksum {marker[:16]}"


@contextmanager
def _on_this_machine(
    stored: ray.train.Checkpoint, context: ray.train.TrainContext
) -> Iterator[Path]:
    """Yield a folder that holds it, fetched once a machine where it is in an object store. The
    block has to wait for all ranks before it ends."""
    with ExitStack() as stack:
        mine: Path | FractalError | None = None
        if context.get_local_rank() == 0:
            try:
                mine = stack.enter_context(fetch_checkpoint(stored.path, stored.filesystem))
            except OSError as error:
                mine = _unreachable(stored, error)
        answers = gather_from_ranks((context.get_node_rank(), mine))
        folders = {node: _or_raise(folder) for node, folder in answers if folder is not None}
        yield folders[context.get_node_rank()]


def _unreachable(stored: ray.train.Checkpoint, error: OSError) -> FractalError:
    return FractalError(
        f"the checkpoint {stored.path} cannot be fetched ({one_line(error)}): check the storage "
        f"and this machine's disk, then run again"
    )


def _or_raise(answer: Value | FractalError) -> Value:
    if isinstance(answer, FractalError):
        raise answer
    return answer
