"""One shard's work: read, decode, crop, encode. Runs in a process of its own.

Decided here: on one machine `datasets`' processes run the jobs (`in_processes`); a cluster is
`fractal_model.parallel.ray_shards`'s.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import numpy as np

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.strict import StrictModel
from fractal_model.data.manifest import QuarantinedFile, ShardRecord
from fractal_model.data.raw_images import RawCounts, UnusableImage, cropped, decoding_rules
from fractal_model.data.shards import ShardWriter, partial_name, shard_name
from fractal_model.data.sources.listing import ImageFile, Listing
from fractal_model.data.sources.reading import SourceReader

# Asking for the bars is setting HF_DATASETS_DISABLE_PROGRESS_BARS=0, which is not None.
if datasets.config.HF_DATASETS_DISABLE_PROGRESS_BARS is None:
    datasets.disable_progress_bars()

DONE_FOLDER = "done"
PROGRESS_FILE = "progress"

_PARENT_CHECK = 16  # images


@dataclass(frozen=True)
class ShardJob:
    """Images `start` to `stop` of a split of the listing, to be written as shard `number`."""

    folder: Path
    """Where the data set is written."""
    listing: Path
    root: Path
    """Of the source."""
    split: str
    number: int
    start: int
    stop: int
    resolution: int
    slot: int
    """Place of this job's count in the progress file."""
    parent: int
    """The process that waits for the shard, 0 for one on another machine."""

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def shard_file(self) -> Path:
        return self.folder / self.split / shard_name(self.number)

    @property
    def done_file(self) -> Path:
        """Written last."""
        return self.folder / DONE_FOLDER / f"{self.split}-{self.number:05d}.json"

    @property
    def digests_file(self) -> Path:
        return self.done_file.with_suffix(".npz")

    def read_digests(self) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (N, 32) and the labels, int64 (N,)."""
        with np.load(self.digests_file) as content:
            return content["digests"], content["labels"]


class ShardDone(StrictModel):
    """What is known of a shard that is built."""

    record: ShardRecord
    quarantined: tuple[QuarantinedFile, ...]
    formats: dict[str, int]
    modes: dict[str, int]
    """Pillow's, before the conversion to RGB."""
    short_sides: dict[str, int]
    """In pixels, before the crop."""
    exif_rotated: int
    exif_unreadable: int
    misnamed: int
    """Images whose name ends like another format."""

    @staticmethod
    def read(file: Path) -> ShardDone:
        return ShardDone.model_validate_json(file.read_text())


def build_shard(job: ShardJob) -> None:
    """Writes the shard, its digests and, last, what is known of it.

    Raises FractalError when the source cannot be read. Ends the process when the one that waits
    for the shard is gone: another run may be at work on it.
    """
    listing = Listing.read(job.listing)
    reader, raw, quarantined = SourceReader(job.root), RawCounts(), []
    counts = np.memmap(job.folder / PROGRESS_FILE, np.int64, mode="r+")
    with ShardWriter(job.shard_file, listing.class_names) as shard, decoding_rules():
        for done, image in enumerate(listing.rows(job.split, job.start, job.stop)):
            counts[job.slot] = done
            if done % _PARENT_CHECK == 0:
                _require_parent(job.parent)
            content = _read(reader, image)
            try:
                shard.add(cropped(content, image.key, job.resolution, raw), image.label)
            except UnusableImage as error:
                quarantined.append(
                    QuarantinedFile(file=f"{job.split}/{image.key}", reason=str(error))
                )
        _require_parent(job.parent)
    counts[job.slot] = len(job)
    _write_done(job, shard, raw, quarantined)


def _require_parent(parent: int) -> None:
    """Ends this process when the one that waits for it was killed.

    Its number may be another process's by now, so that it is not looked for: a process whose
    parent ends gets another parent.
    """
    if parent and parent not in (os.getpid(), os.getppid()):
        raise SystemExit(1)


def _read(reader: SourceReader, image: ImageFile) -> bytes:
    try:
        return reader.read(image)
    except OSError as error:  # not the image's fault: nothing is left out for it
        raise FractalError(
            f"{image.key} cannot be read ({one_line(error)}): make its source readable and run "
            f"again to go on, or register the source again if its images have changed"
        ) from error


def _write_done(
    job: ShardJob, shard: ShardWriter, raw: RawCounts, quarantined: list[QuarantinedFile]
) -> None:
    done = ShardDone(record=shard.record(), quarantined=tuple(quarantined), **vars(raw))
    partial = partial_name(job.digests_file)
    with partial.open("wb") as opened:
        np.savez(opened, digests=shard.digests, labels=shard.labels)
    partial.replace(job.digests_file)
    partial = partial_name(job.done_file)
    partial.write_text(done.model_dump_json())
    partial.replace(job.done_file)


def to_row(job: ShardJob) -> dict[str, str | int]:
    """The job as a row of a table, which holds no paths."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(job).items()}


def build_row(row: dict[str, str | int]) -> dict[str, int]:
    """`build_shard` of a job that travelled as a row."""
    paths = {name: Path(row[name]) for name in ("folder", "listing", "root")}
    build_shard(ShardJob(**{**row, **paths}))
    return {"slot": row["slot"]}


def in_processes(jobs: list[ShardJob], processes: int) -> None:
    """Builds the shards on `processes` processes of this machine. FractalError: one died."""
    processes = min(processes, len(jobs))
    if processes < 2:
        for job in jobs:
            build_shard(job)
        return
    # Each process gets a contiguous stretch of the rows: dealt out, they take equally long.
    dealt = [job for first in range(processes) for job in jobs[first::processes]]
    try:
        datasets.Dataset.from_list([to_row(job) for job in dealt]).map(
            build_row, num_proc=processes, load_from_cache_file=False, new_fingerprint="shards"
        )
    except RuntimeError as error:
        if "abruptly died" not in str(error):
            raise
        raise FractalError(
            "a process of the preparation died, out of memory perhaps: run the same command again "
            "to go on, with fewer preparation.processes"
        ) from error
