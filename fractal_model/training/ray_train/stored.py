"""The checkpoints in a run's storage: which one to resume from, and which ones to remove.

Decided here: an object store cannot rename, so the marker file is uploaded after all other files. A
checkpoint without the marker is incomplete. Rank 0 chooses the checkpoint for all ranks. The ranks
compare what they have read. If one has read other content, the run ends.
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

CHECKPOINT_PREFIX = "checkpoint_"
"""First part of Ray's names for checkpoint folders. Sorted by name, the oldest comes first."""


@dataclass(frozen=True)
class Resumed:
    """The checkpoint from which all ranks continue, and the errors of newer, damaged ones."""

    checkpoint: Checkpoint
    damaged: tuple[str, ...]
    """Error text of each newer checkpoint. All of these are damaged."""


def reported_checkpoints(timeout: float | None = None) -> list[ray.train.ReportedCheckpoint]:
    """Checkpoints that Ray has stored, oldest first, also those that are still being validated.
    `timeout`: longest wait in seconds for reports on their way; None waits until they arrive."""
    mode = ray.train.CheckpointConsistencyMode.COMMITTED
    return ray.train.get_all_reported_checkpoints(consistency_mode=mode, timeout_s=timeout)


def load_newest_undamaged(
    newest: ray.train.Checkpoint, context: ray.train.TrainContext | None = None
) -> Resumed:
    """Load the checkpoint `newest`; if it is damaged, load the newest undamaged one before it. All
    ranks must call this together. FractalError, on all ranks: every checkpoint is damaged, the
    storage does not answer, or the ranks do not read the same checkpoint."""
    context = context or ray.train.get_context()
    is_rank_zero = context.get_world_rank() == 0
    choice = _choose(newest) if is_rank_zero else FractalError("replaced by rank 0's choice")
    stored, damaged = _or_raise(broadcast_from_rank_zero(choice))
    return Resumed(load_on_all_ranks(stored, context), damaged)


def load_on_all_ranks(stored: ray.train.Checkpoint, context: ray.train.TrainContext) -> Checkpoint:
    """Load the checkpoint `stored`. All ranks must call this together. FractalError, on all ranks:
    it is missing or damaged, the storage does not answer, or the ranks do not read the same."""
    with _fetch_once_per_machine(stored, context) as folder:
        checkpoint = _load(folder, stored)
        summaries = gather_from_ranks(_summarise(checkpoint, folder))
    if len(set(summaries)) > 1:
        other = next(rank for rank, text in enumerate(summaries) if text != summaries[0])
        raise FractalError(
            f"the ranks do not read the same checkpoint {stored.path}: rank 0 reads "
            f"{summaries[0]}, rank {other} reads {summaries[other]}; give every machine the same "
            f"storage and run again"
        )
    return _or_raise(checkpoint)


def remove_incomplete(filesystem: FileSystem, run: str, keep: frozenset[str] = frozenset()) -> None:
    """Remove the checkpoints in the folder `run` that have no marker, because their upload was
    interrupted; but not those whose names are in `keep`. OSError: the storage does not answer."""
    for name in _names(filesystem, run):
        marker = filesystem.get_file_info(f"{run}/{name}/{MARKER}")
        if marker.type == FileType.NotFound and name not in keep:
            filesystem.delete_dir(f"{run}/{name}")


def _choose(
    newest: ray.train.Checkpoint,
) -> tuple[ray.train.Checkpoint, tuple[str, ...]] | FractalError:
    """Return the newest undamaged checkpoint, `newest` or older, and the errors of damaged newer
    ones. If all are damaged or the storage fails, return an error, so that all ranks can raise
    it."""
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
        return _unreachable_error(newest, error)
    return damaged[0]


def _names(filesystem: FileSystem, run: str) -> list[str]:
    """Names of the checkpoint folders in the run's folder `run`, oldest first."""
    infos = filesystem.get_file_info(FileSelector(run, allow_not_found=True))
    folders = (info.base_name for info in infos if info.type == FileType.Directory)
    return sorted(name for name in folders if name.startswith(CHECKPOINT_PREFIX))


def _load(folder: Path, stored: ray.train.Checkpoint) -> Checkpoint | FractalError:
    """Load the checkpoint in `folder`, a copy of `stored`. If it is damaged, return an error, whose
    text has the path of `stored`."""
    try:
        return load_checkpoint(folder)
    except FractalError as error:
        return FractalError(str(error).replace(str(folder), stored.path))


def _summarise(checkpoint: Checkpoint | FractalError, folder: Path) -> str:
    """Text with the position and checksum of a checkpoint, or with the error. It is the same on
    ranks that read the same."""
    if isinstance(checkpoint, FractalError):
        return str(checkpoint)
    marker = (folder / MARKER).read_text()
    return f"position {checkpoint.progress.position}, checksum {marker[:16]}"


@contextmanager
def _fetch_once_per_machine(
    stored: ray.train.Checkpoint, context: ray.train.TrainContext
) -> Iterator[Path]:
    """Yield a folder on this machine with the checkpoint. Local rank 0 fetches it, and removes a
    downloaded copy at the end of the block. Until then all ranks must have finished reading."""
    with ExitStack() as stack:
        fetched: Path | FractalError | None = None
        if context.get_local_rank() == 0:
            try:
                fetched = stack.enter_context(fetch_checkpoint(stored.path, stored.filesystem))
            except OSError as error:
                fetched = _unreachable_error(stored, error)
        answers = gather_from_ranks((context.get_node_rank(), fetched))
        folders = {node: _or_raise(folder) for node, folder in answers if folder is not None}
        yield folders[context.get_node_rank()]


def _unreachable_error(stored: ray.train.Checkpoint, error: OSError) -> FractalError:
    return FractalError(
        f"the checkpoint {stored.path} cannot be fetched ({one_line(error)}): check the storage "
        f"and this machine's disk, then run again"
    )


def _or_raise(answer: Value | FractalError) -> Value:
    if isinstance(answer, FractalError):
        raise answer
    return answer
