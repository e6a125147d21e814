"""Build one shard: read, decode, fit and encode its images.

Decided here: on one machine a pool of processes builds the shards (`build_in_processes`), on a
cluster `fractal_model.parallel.ray_shards`. A process starts in the platform's default way. On
Linux that is a fork. Forking is safe here because the work uses neither torch nor a lock of another
thread. It is also fast, while a new interpreter needs seconds for its imports. Shards are handed
out one by one, so that all processes end at about the same time.
"""

import os
import signal
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread

import numpy as np

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.files import atomic_file
from fractal_model.data.decoding import UnusableImage
from fractal_model.data.manifest import QuarantinedFile, ShardRecord
from fractal_model.data.raw_images import RawCounts, Rendering, prepare_image
from fractal_model.data.shards import shard_name, write_shard
from fractal_model.data.sources.listing import ImageFile, Listing
from fractal_model.data.sources.openmoji import rasterise
from fractal_model.data.sources.reading import SourceReader

DONE_FOLDER = "done"
PROGRESS_FILE = "progress"


@dataclass(frozen=True)
class ShardJob:
    """The task to write the images `start` to `stop` - 1 of a split as the shard `number`."""

    folder: Path
    """Folder in which the data set is written."""
    listing: Path
    """File of the source's listing."""
    root: Path
    """Folder of the raw images."""
    split: str
    number: int
    start: int
    stop: int
    resolution: int
    rendering: Rendering
    slot: int
    """Index of this job's count in the progress file."""

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def shard_file(self) -> Path:
        return self.folder / self.split / shard_name(self.number)

    @property
    def done_file(self) -> Path:
        """File with the `ShardResult`, written last: a shard with this file is complete."""
        return self.folder / DONE_FOLDER / f"{self.split}-{self.number:05d}.json"

    @property
    def checksums_file(self) -> Path:
        return self.done_file.with_suffix(".npz")

    def read_checksums(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the checksums of the shard's images, uint8 (N, 32), and the labels, int64 (N,)."""
        with np.load(self.checksums_file) as arrays:
            return arrays["digests"], arrays["labels"]


class ShardResult(RawCounts):
    """The content of `ShardJob.done_file`: the shard's manifest entry, its quarantined files, and
    the counts of its raw images."""

    record: ShardRecord
    quarantined: tuple[QuarantinedFile, ...]


def build_shard(job: ShardJob) -> None:
    """Write the shard of a job, then the checksums of its images, then the job's `done_file`.
    Raises FractalError when the source cannot be read."""
    listing = Listing.read(job.listing)
    reader, raw, quarantined = SourceReader(job.root), RawCounts(), []
    counts = np.memmap(job.folder / PROGRESS_FILE, np.int64, mode="r+")
    with write_shard(job.shard_file, listing.class_names) as shard:
        for number, image in enumerate(listing.rows(job.split, job.start, job.stop)):
            counts[job.slot] = number
            content = _read(reader, image)
            try:
                if image.file.endswith(".svg"):
                    content = rasterise(content, job.resolution)
                square = prepare_image(content, image.key, job.resolution, raw, job.rendering)
                shard.add(square, image.label)
            except UnusableImage as error:
                quarantined.append(
                    QuarantinedFile(file=f"{job.split}/{image.key}", reason=str(error))
                )
    counts[job.slot] = len(job)
    with atomic_file(job.checksums_file, unique=True) as partial:
        np.savez(partial, digests=shard.checksums, labels=shard.labels)
    result = ShardResult(record=shard.record(), quarantined=tuple(quarantined), **vars(raw))
    with atomic_file(job.done_file, unique=True) as partial:
        partial.write_text(result.model_dump_json())


def _read(reader: SourceReader, image: ImageFile) -> bytes:
    try:
        return reader.read(image)
    except OSError as error:  # The image may be intact, so it is not left out.
        raise FractalError(
            f"{image.key} cannot be read ({one_line(error)}): make its source readable and run "
            f"again to continue, or register the source again if its images have changed"
        ) from error


def build_in_processes(jobs: list[ShardJob], processes: int) -> None:
    """Build the shards of the jobs in up to `processes` processes on this machine.

    Raises FractalError when a shard cannot be built or a process dies; all processes end then."""
    processes = min(processes, len(jobs))
    if processes < 2:
        for job in jobs:
            build_shard(job)
        return
    lifeline = Pipe(duplex=False)
    pool = ProcessPoolExecutor(processes, initializer=_end_with_parent, initargs=lifeline)
    with pool, lifeline[1]:  # The pipe closes before the pool, so an error waits for no job.
        try:
            for future in as_completed([pool.submit(build_shard, job) for job in jobs]):
                future.result()
        except BrokenProcessPool as error:
            raise FractalError(
                "a process of the preparation died, perhaps because memory ran out: set a smaller "
                "preparation.processes and run the same command again to continue"
            ) from error


def _end_with_parent(reader: Connection, writer: Connection) -> None:
    """Make this process of the pool end when its parent closes the pipe or dies. Otherwise it would
    go on writing files that the next run writes too, or wait for a job that never comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent handles an interrupt.
    writer.close()  # Only the parent may keep the pipe open.
    Thread(target=_end_at_close, args=(reader,), daemon=True).start()


def _end_at_close(reader: Connection) -> None:
    reader.poll(None)
    os._exit(1)
