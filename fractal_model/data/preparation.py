"""Preparing a registered source: crop, encode and write its images, over all cores.

Decided here: the listing is cut into shards, and a shard is the unit of work: its bytes follow
from the listing alone, whoever builds it and when. A run that was killed left whole shards behind,
in a hidden folder beside the data set, and the next run builds the others. Images that cannot be
read are left out, with the reason; more of them than `max_quarantined_share` fail the preparation.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import numpy as np
import PIL
from PIL import features

from fractal_model.common.errors import FractalError
from fractal_model.common.files import remove_partial_files
from fractal_model.common.locks import only_one
from fractal_model.config.data import PreparationConfig
from fractal_model.data.manifest import (
    ContentHash,
    Manifest,
    QuarantinedFile,
    SplitRecord,
    write_manifest,
)
from fractal_model.data.raw_images import PREPROCESSING
from fractal_model.data.shard_job import (
    DONE_FOLDER,
    PROGRESS_FILE,
    ShardDone,
    ShardJob,
)
from fractal_model.data.shards import images_per_shard, write_index
from fractal_model.data.sources.listing import TRAIN, VALIDATION, Listing
from fractal_model.data.sources.registered import Source, listing_file, load_source
from fractal_model.data.writing import partial_folder, put_in_place, recover

PREPARATION_FILE = "preparation.json"
"""In a prepared data set: what its raw images were like."""
_PLAN_FILE = "plan.json"
_POLL_SECONDS = 0.2
_FEWEST_SHARDS, _SMALL_SHARD = 16, 128

RunJobs = Callable[[list[ShardJob]], None]
"""Builds the shards, in any order and place that shares the file system."""


def prepare_source(
    data: Path,
    dataset: str,
    *,
    source: str,
    resolution: int,
    settings: PreparationConfig,
    run_jobs: RunJobs,
    progress: Callable[[int], None] = lambda done: None,
) -> Manifest:
    """Writes `<data>/<dataset>` from the registered `source`; goes on where a killed run stopped.

    `progress` is told how many images are done. Equal sources give equal bytes, for any number of
    processes.
    Raises FractalError when the source is missing or changed, when too many images had to be left
    out, and when another process prepares the same data set.
    """
    folder = data / dataset
    described, root, listing = load_source(data, source)
    with only_one(data / f".{dataset}.lock"):
        recover(folder)
        partial = _start(folder, described, resolution)
        jobs = _plan(partial, data, source, root, listing, resolution)
        missing = [job for job in jobs if not job.done_file.is_file()]
        with _progress(partial, jobs, progress):
            if missing:
                run_jobs(missing)
        return _finish(folder, dataset, described, listing, resolution, settings, jobs)


def _start(folder: Path, source: Source, resolution: int) -> Path:
    """The partial folder, emptied when it is of another source, size or version."""
    partial = partial_folder(folder)
    plan = {
        "listing": source.listing_checksum,
        "resolution": resolution,
        "preprocessing": PREPROCESSING,
        "pillow": PIL.__version__,
        "jpeg": features.version("jpg"),
        "webp": features.version("webp"),
        "recorded": list(ShardDone.model_fields),
    }
    text = json.dumps(plan, indent=2)
    file = partial / _PLAN_FILE
    if not file.is_file() or file.read_text() != text:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / DONE_FOLDER).mkdir(parents=True)
        file.write_text(text)
    _sweep(partial)
    return partial


def _sweep(partial: Path) -> None:
    for folder in (partial / DONE_FOLDER, *map(partial.joinpath, (TRAIN, VALIDATION))):
        remove_partial_files(folder)


def _plan(
    partial: Path, data: Path, source: str, root: Path, listing: Listing, resolution: int
) -> list[ShardJob]:
    jobs: list[ShardJob] = []
    for split in listing.splits():
        images = listing.count(split)
        small = min(_FEWEST_SHARDS, -(-images // _SMALL_SHARD))  # so that all cores have work
        shards = max(1, small, -(-images // images_per_shard(resolution)))
        bounds = [images * number // shards for number in range(shards + 1)]
        for number in range(shards):
            jobs.append(
                ShardJob(
                    folder=partial,
                    listing=listing_file(data, source),
                    root=root,
                    split=split,
                    number=number,
                    start=bounds[number],
                    stop=bounds[number + 1],
                    resolution=resolution,
                    slot=len(jobs),
                )
            )
    return jobs


@contextmanager
def _progress(
    partial: Path, jobs: list[ShardJob], progress: Callable[[int], None]
) -> Iterator[None]:
    """Tells how many images are done: each job counts in its own slot of a small mapped file."""
    counts = np.memmap(partial / PROGRESS_FILE, np.int64, mode="w+", shape=(len(jobs),))
    for job in jobs:
        counts[job.slot] = len(job) if job.done_file.is_file() else 0
    ended = Event()

    def watch() -> None:
        while not ended.wait(_POLL_SECONDS):
            progress(int(counts.sum()))

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    progress(int(counts.sum()))


def _finish(
    folder: Path,
    dataset: str,
    source: Source,
    listing: Listing,
    resolution: int,
    settings: PreparationConfig,
    jobs: list[ShardJob],
) -> Manifest:
    partial = partial_folder(folder)
    done = [(job, ShardDone.read(job.done_file)) for job in jobs]
    quarantined = [
        QuarantinedFile(file=f"{entry.split}/{entry.file}", reason=entry.reason)
        for entry in listing.refused
    ]
    quarantined += [entry for _, shard in done for entry in shard.quarantined]
    images = sum(map(len, jobs)) + len(listing.refused)
    try:
        _require_usable(folder, quarantined, images, listing, done, settings)
    except FractalError:
        for job, shard in done:
            if shard.quarantined:  # looked at again by the next run: the files may be mended
                job.done_file.unlink()
        raise
    splits = {
        name: _split_record(
            partial / name,
            [(job, shard) for job, shard in done if job.split == name],
            resolution,
            listing.class_names,
        )
        for name in listing.splits()
    }
    _write_preparation(partial, listing.splits(), done)
    manifest = Manifest(
        dataset=dataset,
        source=f"{source.name}: {source.kind}, listing {source.listing_checksum[:16]}",
        preprocessing=f"{PREPROCESSING}; {resolution} px",
        resolution=resolution,
        class_names=listing.class_names,
        splits=splits,
        quarantined=tuple(quarantined),
    )
    write_manifest(partial, manifest)
    for leftover in (partial / _PLAN_FILE, partial / PROGRESS_FILE):
        leftover.unlink(missing_ok=True)
    _sweep(partial)
    shutil.rmtree(partial / DONE_FOLDER)
    put_in_place(folder)
    return manifest


def _split_record(
    folder: Path,
    done: list[tuple[ShardJob, ShardDone]],
    resolution: int,
    class_names: tuple[str, ...],
) -> SplitRecord:
    content = ContentHash(resolution, len(class_names))
    for job, _ in done:
        content.add(*job.read_digests())
    shards = [shard.record for _, shard in done]
    record = content.record(shards)
    write_index(folder, class_names, shards, record.checksum)
    return record


def _require_usable(
    folder: Path,
    quarantined: list[QuarantinedFile],
    images: int,
    listing: Listing,
    done: list[tuple[ShardJob, ShardDone]],
    settings: PreparationConfig,
) -> None:
    """FractalError: too few images can be used. They are then listed in a file beside `folder`."""
    file = folder.with_name(f"{folder.name}-quarantined.csv")
    file.unlink(missing_ok=True)
    share, allowed = len(quarantined) / max(images, 1), settings.max_quarantined_share
    usable = {job.split for job, shard in done if shard.record.images}
    empty = [split for split in listing.splits() if split not in usable]
    if share <= allowed and not empty:
        return
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows(
            [("file", "reason"), *((entry.file, entry.reason) for entry in quarantined)]
        )
    first = "; ".join(f"{entry.file}: {entry.reason}" for entry in quarantined[:3])
    limit = f"no {empty[0]} image is left" if empty else f"at most {allowed:.2%} are allowed"
    way_out = "" if empty else ", or raise preparation.max_quarantined_share"
    raise FractalError(
        f"{len(quarantined)} of {images} images of {folder.name} cannot be used ({share:.2%}, "
        f"{limit}): {first}; all are in {file}; mend the source and run again{way_out}"
    )


def _write_preparation(
    partial: Path, splits: tuple[str, ...], done: list[tuple[ShardJob, ShardDone]]
) -> None:
    found = {}
    for name in splits:
        shards = [shard for job, shard in done if job.split == name]
        found[name] = {
            "formats": _sum(shard.formats for shard in shards),
            "modes": _sum(shard.modes for shard in shards),
            "short_sides": _sum(shard.short_sides for shard in shards),
            "exif_rotated": sum(shard.exif_rotated for shard in shards),
            "exif_unreadable": sum(shard.exif_unreadable for shard in shards),
            "misnamed": sum(shard.misnamed for shard in shards),
        }
    text = json.dumps({"splits": found}, indent=2)
    (partial / PREPARATION_FILE).write_text(text + "\n")


def _sum(counts: Iterator[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items()))
