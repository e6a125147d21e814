"""One shard's work: read, decode, crop, encode. Runs in a process of its own.

Decided here: on one machine `datasets`' processes run the jobs (`in_processes`); a cluster is
`fractal_model.ray_preparation`'s.
"""

from __future__ import annotations

import io
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import psutil

from fractal_model.config import StrictModel
from fractal_model.data.crop import center_crop
from fractal_model.data.manifest import QuarantinedFile, ShardRecord
from fractal_model.data.shards import ShardWriter, shard_name
from fractal_model.data.sources.listing import ImageFile, Listing
from fractal_model.data.sources.reading import SourceReader
from fractal_model.errors import FractalError, one_line

# Asking for the bars is setting HF_DATASETS_DISABLE_PROGRESS_BARS=0, which is not None.
if datasets.config.HF_DATASETS_DISABLE_PROGRESS_BARS is None:
    datasets.disable_progress_bars()

DONE_FOLDER = "done"
PROGRESS_FILE = "progress"

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Decoded. Others, such as PostScript, would start other programs."""
_SUFFIXES = {"JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "PNG": (".png",)}
_EXIF_ORIENTATION = 0x0112
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
    misnamed: int
    """Images whose name ends like another format."""

    @staticmethod
    def read(file: Path) -> ShardDone:
        return ShardDone.model_validate_json(file.read_text())


class _Found:
    """Counts what the raw images are like."""

    def __init__(self) -> None:
        self.formats: Counter[str] = Counter()
        self.modes: Counter[str] = Counter()
        self.short_sides: Counter[str] = Counter()
        self.exif_rotated = self.misnamed = 0

    def add(self, image: PIL.Image.Image, name: str) -> None:
        self.formats[image.format] += 1
        self.modes[image.mode] += 1
        self.short_sides[str(min(image.size))] += 1
        if "exif" in image.info:
            self.exif_rotated += image.getexif().get(_EXIF_ORIENTATION, 1) not in (0, 1)
        suffix, theirs = Path(name).suffix.lower(), _SUFFIXES.get(image.format, ())
        known = any(suffix in endings for endings in _SUFFIXES.values())
        self.misnamed += known and suffix not in theirs


def build_shard(job: ShardJob) -> None:
    """Writes the shard, its digests and, last, what is known of it."""
    listing = Listing.read(job.listing)
    reader, found, quarantined = SourceReader(job.root), _Found(), []
    counts = np.memmap(job.folder / PROGRESS_FILE, np.int64, mode="r+")
    with ShardWriter(job.shard_file, listing.class_names) as shard, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of metadata: ImageNet has corrupt EXIF
        warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
        for done, image in enumerate(listing.rows(job.split, job.start, job.stop)):
            counts[job.slot] = done
            if done % _PARENT_CHECK == 0:
                _require_parent(job.parent)
            try:
                cropped = _cropped(reader, image, job.resolution, found)
            except _Unusable as error:
                quarantined.append(
                    QuarantinedFile(file=f"{job.split}/{image.key}", reason=str(error))
                )
            else:
                shard.add(cropped, image.label)
    counts[job.slot] = len(job)
    _write_done(job, shard, found, quarantined)


def _require_parent(parent: int) -> None:
    """Ends this process when the one that waits for it was killed."""
    if parent and not psutil.pid_exists(parent):
        raise SystemExit(1)


class _Unusable(Exception):
    """Why an image is left out."""


def _cropped(
    reader: SourceReader, image: ImageFile, resolution: int, found: _Found
) -> PIL.Image.Image:
    try:
        content = reader.read(image)
    except OSError as error:  # not the image's fault: nothing is left out for it
        raise FractalError(
            f"{image.key} cannot be read ({one_line(error)}): make its source readable and run "
            f"again to go on, or register the source again if its images have changed"
        ) from error
    if not content:
        raise _Unusable("the file is empty")
    try:
        with PIL.Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            opened.load()
            # `convert` would copy what is RGB already.
            rgb = opened if opened.mode == "RGB" else opened.convert("RGB")
            found.add(opened, image.key)
    except PIL.UnidentifiedImageError:
        raise _Unusable(f"not an image of {', '.join(FORMATS)}") from None
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
        limit = PIL.Image.MAX_IMAGE_PIXELS
        raise _Unusable(f"more than {limit:,} pixels, perhaps a decompression bomb") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise _Unusable(f"damaged: {one_line(error)}") from None
    return center_crop(rgb, resolution)


def _write_done(
    job: ShardJob, shard: ShardWriter, found: _Found, quarantined: list[QuarantinedFile]
) -> None:
    np.savez(job.digests_file, digests=shard.digests, labels=shard.labels)
    done = ShardDone(record=shard.record(), quarantined=tuple(quarantined), **vars(found))
    partial = job.done_file.with_suffix(".partial")
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
