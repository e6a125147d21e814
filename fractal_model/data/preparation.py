"""Prepare a registered source: fit, encode and write its images on all cores.

Decided here: the listing is divided into shards, and a shard is the unit of work. A shard's
bytes depend on the listing alone. A run that was killed leaves complete shards in a hidden folder
beside the data set, and the next run builds the others. Images that cannot be read are left out and
listed in the manifest. The preparation fails if their share is above `max_quarantined_share`.
"""

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
from fractal_model.common.locks import hold_lock
from fractal_model.config.data import IMAGENET, OPENMOJI, PreparationConfig
from fractal_model.data.manifest import Manifest, QuarantinedFile, write_manifest
from fractal_model.data.raw_images import RawCounts, Rendering
from fractal_model.data.shard_job import DONE_FOLDER, PROGRESS_FILE, ShardJob, ShardResult
from fractal_model.data.shards import complete_split, images_per_shard
from fractal_model.data.sources.listing import TRAIN, VALIDATION, Listing, Progress
from fractal_model.data.sources.openmoji import ATTRIBUTION, rasteriser
from fractal_model.data.sources.registered import Source, listing_file, load_source
from fractal_model.data.writing import partial_folder, put_in_place, recover

PREPARATION_FILE = "preparation.json"
"""File of a prepared data set with the `RawCounts` of each split."""
_PLAN_FILE = "plan.json"
_POLL_SECONDS = 0.2
_FEWEST_SHARDS, _SMALL_SHARD = 16, 128  # shards; images in a shard of a small split

RunJobs = Callable[[list[ShardJob]], None]
"""Function that builds the shards of all jobs, in any order, on machines that share the files."""
BuiltShards = list[tuple[ShardJob, ShardResult]]


def prepare_source(
    data: Path,
    dataset: str,
    *,
    source: str,
    resolution: int,
    settings: PreparationConfig,
    run_jobs: RunJobs,
    progress: Progress = lambda done: None,
) -> Manifest:
    """Write the prepared data set `<data>/<dataset>`, whose images have a side of `resolution`
    pixels, from the registered `source`; or continue a run that was killed.

    `run_jobs` builds the missing shards. `progress` is called with the number of finished images.
    Equal sources give equal bytes, for any number of processes.
    Raises FractalError when the source is missing or changed, when too many images cannot be used,
    and when another process prepares the same data set.
    """
    folder = data / dataset
    description, root, listing = load_source(data, source)
    with hold_lock(data / f".{dataset}.lock"):
        recover(folder)
        partial = _open_partial_folder(folder, description, resolution)
        rendering = _rendering(description)
        jobs = _plan_jobs(partial, listing_file(data, source), root, listing, resolution, rendering)
        missing = [job for job in jobs if not job.done_file.is_file()]
        with _report_progress(partial, jobs, progress):
            if missing:
                run_jobs(missing)
        built = [(job, ShardResult.model_validate_json(job.done_file.read_text())) for job in jobs]
        left_out = _quarantined_files(folder, listing, built, settings.max_quarantined_share)
        manifest = _complete(partial, dataset, description, listing, resolution, built, left_out)
        put_in_place(folder)
        return manifest


def _open_partial_folder(folder: Path, source: Source, resolution: int) -> Path:
    """Return the hidden folder in which the data set is written. Empty the folder first if it was
    written for another source or resolution, or with other software versions."""
    partial = partial_folder(folder)
    plan = {
        "listing": source.listing_checksum,
        "resolution": resolution,
        "preprocessing": _preprocessing(source),
        "pillow": PIL.__version__,
        "jpeg": features.version("jpg"),
        "webp": features.version("webp"),
        "recorded": ["record", "quarantined", *RawCounts.model_fields],
    }
    text = json.dumps(plan, indent=2)
    file = partial / _PLAN_FILE
    if not file.is_file() or file.read_text() != text:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / DONE_FOLDER).mkdir(parents=True)
        file.write_text(text)
    _remove_partial_files(partial)
    return partial


def _rendering(source: Source) -> Rendering:
    """Return how the images of `source` are made. Published results on ImageNet use images as ADM
    reads them."""
    return Rendering(source.name == IMAGENET, source.background, source.fit)


def _preprocessing(source: Source) -> str:
    drawing = f"drawn by {rasteriser()}; " if source.name == OPENMOJI else ""
    return f"{drawing}{_rendering(source).describe()}"


def _describe_origin(source: Source) -> str:
    origin = f"{source.name}: {source.kind}, listing {source.listing_checksum[:16]}"
    return f"{origin}; {ATTRIBUTION}" if source.name == OPENMOJI else origin


def _remove_partial_files(partial: Path) -> None:
    for folder in (DONE_FOLDER, TRAIN, VALIDATION):
        remove_partial_files(partial / folder)


def _plan_jobs(
    partial: Path,
    listing_path: Path,
    root: Path,
    listing: Listing,
    resolution: int,
    rendering: Rendering,
) -> list[ShardJob]:
    """Divide each split into shards of about equal size. A split has at least 16 shards, so that
    many cores have work. A split too small for 16 shards has one for every 128 images."""
    jobs: list[ShardJob] = []
    for split in listing.splits():
        images = listing.count(split)
        small = min(_FEWEST_SHARDS, -(-images // _SMALL_SHARD))
        shards = max(1, small, -(-images // images_per_shard(resolution)))
        for number in range(shards):
            start, stop = (images * bound // shards for bound in (number, number + 1))
            jobs.append(
                ShardJob(
                    folder=partial,
                    listing=listing_path,
                    root=root,
                    split=split,
                    number=number,
                    start=start,
                    stop=stop,
                    resolution=resolution,
                    rendering=rendering,
                    slot=len(jobs),
                )
            )
    return jobs


@contextmanager
def _report_progress(partial: Path, jobs: list[ShardJob], progress: Progress) -> Iterator[None]:
    """Call `progress` with the number of finished images every 0.2 s while the `with` block runs.
    Each job writes its count to its own slot of a small memory-mapped file."""
    counts = np.memmap(partial / PROGRESS_FILE, np.int64, mode="w+", shape=(len(jobs),))
    for job in jobs:
        counts[job.slot] = len(job) if job.done_file.is_file() else 0
    progress(int(counts.sum()))
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


def _quarantined_files(
    folder: Path, listing: Listing, built: BuiltShards, allowed: float
) -> tuple[QuarantinedFile, ...]:
    """Return the images that cannot be used. Raises FractalError when their share of all images is
    above `allowed`, or when a split has no usable image. First list these images in a table beside
    `folder`, and make the next run build their shards again, because the user may repair them."""
    table = folder.with_name(f"{folder.name}-quarantined.csv")
    table.unlink(missing_ok=True)
    left_out = [
        QuarantinedFile(file=f"{entry.split}/{entry.file}", reason=entry.reason)
        for entry in listing.refused
    ]
    left_out += [entry for _, shard in built for entry in shard.quarantined]
    images = sum(len(job) for job, _ in built) + len(listing.refused)
    share = len(left_out) / max(images, 1)
    usable = {job.split for job, shard in built if shard.record.images}
    empty = [split for split in listing.splits() if split not in usable]
    if share <= allowed and not empty:
        return tuple(left_out)
    with table.open("w", newline="") as opened:
        rows = ((entry.file, entry.reason) for entry in left_out)
        csv.writer(opened).writerows([("file", "reason"), *rows])
    for job, shard in built:
        if shard.quarantined:
            job.done_file.unlink()
    first = "; ".join(f"{entry.file}: {entry.reason}" for entry in left_out[:3])
    limit = f"no {empty[0]} image is left" if empty else f"at most {allowed:.2%} are allowed"
    way_out = "" if empty else ", or raise preparation.max_quarantined_share"
    raise FractalError(
        f"{len(left_out)} of {images} images of {folder.name} cannot be used ({share:.2%}, "
        f"{limit}): {first}; all are in {table}; repair the source and run again{way_out}"
    )


def _complete(
    partial: Path,
    dataset: str,
    source: Source,
    listing: Listing,
    resolution: int,
    built: BuiltShards,
    left_out: tuple[QuarantinedFile, ...],
) -> Manifest:
    """Complete the data set in `partial`: write the counts of its raw images and its manifest, and
    remove temporary files. Return the manifest."""
    splits, counts = {}, {}
    for name in listing.splits():
        shards = [(job, shard) for job, shard in built if job.split == name]
        contents = ((shard.record, *job.read_checksums()) for job, shard in shards)
        splits[name] = complete_split(partial / name, listing.class_names, resolution, contents)
        counts[name] = _sum_raw_counts([shard for _, shard in shards])
    text = json.dumps({"splits": counts}, indent=2)
    (partial / PREPARATION_FILE).write_text(text + "\n")
    manifest = Manifest(
        dataset=dataset,
        source=_describe_origin(source),
        preprocessing=f"{_preprocessing(source)}; {resolution} px",
        resolution=resolution,
        class_names=listing.class_names,
        splits=splits,
        quarantined=left_out,
    )
    write_manifest(partial, manifest)
    for leftover in (partial / _PLAN_FILE, partial / PROGRESS_FILE):
        leftover.unlink(missing_ok=True)
    _remove_partial_files(partial)
    shutil.rmtree(partial / DONE_FOLDER)
    return manifest


def read_raw_counts(folder: Path) -> dict[str, RawCounts]:
    """Return the `RawCounts` of the prepared data set in `folder`, by name of the split. The
    dictionary is empty if the data set was not prepared from image files."""
    file = folder / PREPARATION_FILE
    splits = json.loads(file.read_text())["splits"] if file.is_file() else {}
    return {name: RawCounts.model_validate(counts) for name, counts in splits.items()}


def _sum_raw_counts(shards: list[ShardResult]) -> dict[str, int | dict[str, int]]:
    """Add up the `RawCounts` of several shards. The result can be written as JSON."""
    total: dict[str, int | dict[str, int]] = {}
    for name, empty in vars(RawCounts()).items():
        counts = [getattr(shard, name) for shard in shards]
        if isinstance(empty, Counter):
            total[name] = dict(sorted(sum(counts, Counter()).items()))
        else:
            total[name] = sum(counts)
    return total
