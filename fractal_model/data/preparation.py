"""Preparing a registered source: crop, encode and write its images, over all cores.

Decided here: the listing is cut into shards, and a shard is the unit of work: its bytes follow
from the listing alone, whoever builds it and when. A run that was killed left whole shards behind,
in a hidden folder beside the data set, and the next run builds the others. Images that cannot be
read are left out, with the reason; more of them than `max_quarantined_share` fail the preparation.
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
from fractal_model.config.data import IMAGENET, PreparationConfig
from fractal_model.data.adm_crop import PREPROCESSING
from fractal_model.data.decoding import READING
from fractal_model.data.manifest import Manifest, QuarantinedFile, write_manifest
from fractal_model.data.raw_images import RawCounts
from fractal_model.data.shard_job import DONE_FOLDER, PROGRESS_FILE, ShardJob, ShardResult
from fractal_model.data.shards import complete_split, images_per_shard
from fractal_model.data.sources.listing import TRAIN, VALIDATION, Listing, Progress
from fractal_model.data.sources.registered import Source, listing_file, load_source
from fractal_model.data.writing import partial_folder, put_in_place, recover

PREPARATION_FILE = "preparation.json"
"""In a prepared data set: what its raw images were like."""
_PLAN_FILE = "plan.json"
_POLL_SECONDS = 0.2
_FEWEST_SHARDS, _SMALL_SHARD = 16, 128

RunJobs = Callable[[list[ShardJob]], None]
"""Builds the shards, in any order and place that shares the file system."""
Built = list[tuple[ShardJob, ShardResult]]


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
    """Write `<data>/<dataset>` from the registered `source`; go on where a killed run stopped.

    `progress` is told how many images are done. Equal sources give equal bytes, for any number of
    processes.
    Raises FractalError when the source is missing or changed, when too many images had to be left
    out, and when another process prepares the same data set.
    """
    folder = data / dataset
    described, root, listing = load_source(data, source)
    with hold_lock(data / f".{dataset}.lock"):
        recover(folder)
        partial = _start(folder, described, resolution)
        jobs = _plan(
            partial, listing_file(data, source), root, listing, resolution, _as_adm(described)
        )
        missing = [job for job in jobs if not job.done_file.is_file()]
        with _progress(partial, jobs, progress):
            if missing:
                run_jobs(missing)
        built = [(job, ShardResult.model_validate_json(job.done_file.read_text())) for job in jobs]
        left_out = _left_out(folder, listing, built, settings.max_quarantined_share)
        manifest = _write_whole(partial, dataset, described, listing, resolution, built, left_out)
        put_in_place(folder)
        return manifest


def _start(folder: Path, source: Source, resolution: int) -> Path:
    """The partial folder, emptied when it is of another source, size or version."""
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
    _sweep(partial)
    return partial


def _as_adm(source: Source) -> bool:
    """True for ImageNet, whose published numbers are of pictures as ADM reads them."""
    return source.name == IMAGENET


def _preprocessing(source: Source) -> str:
    return PREPROCESSING if _as_adm(source) else f"{READING}; {PREPROCESSING}"


def _sweep(partial: Path) -> None:
    for folder in (DONE_FOLDER, TRAIN, VALIDATION):
        remove_partial_files(partial / folder)


def _plan(
    partial: Path, listed: Path, root: Path, listing: Listing, resolution: int, as_adm: bool
) -> list[ShardJob]:
    """Cut the splits into shards of about equal size, enough of them to keep all cores at work."""
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
                    listing=listed,
                    root=root,
                    split=split,
                    number=number,
                    start=start,
                    stop=stop,
                    resolution=resolution,
                    as_adm=as_adm,
                    slot=len(jobs),
                )
            )
    return jobs


@contextmanager
def _progress(partial: Path, jobs: list[ShardJob], progress: Progress) -> Iterator[None]:
    """Tell how many images are done: each job counts in its own slot of a small mapped file."""
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


def _left_out(
    folder: Path, listing: Listing, built: Built, allowed: float
) -> tuple[QuarantinedFile, ...]:
    """The images that cannot be used.

    FractalError: their share is more than `allowed`, or a split has no other. They are then listed
    in a file beside `folder`, and the next run looks at them again: they may be mended.
    """
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
        f"{limit}): {first}; all are in {table}; mend the source and run again{way_out}"
    )


def _write_whole(
    partial: Path,
    dataset: str,
    source: Source,
    listing: Listing,
    resolution: int,
    built: Built,
    left_out: tuple[QuarantinedFile, ...],
) -> Manifest:
    """Complete the data set in `partial`: indices, manifest, none of the work's own files."""
    splits, counts = {}, {}
    for name in listing.splits():
        shards = [(job, shard) for job, shard in built if job.split == name]
        contents = ((shard.record, *job.read_checksums()) for job, shard in shards)
        splits[name] = complete_split(partial / name, listing.class_names, resolution, contents)
        counts[name] = _raw_counts([shard for _, shard in shards])
    text = json.dumps({"splits": counts}, indent=2)
    (partial / PREPARATION_FILE).write_text(text + "\n")
    manifest = Manifest(
        dataset=dataset,
        source=f"{source.name}: {source.kind}, listing {source.listing_checksum[:16]}",
        preprocessing=f"{_preprocessing(source)}; {resolution} px",
        resolution=resolution,
        class_names=listing.class_names,
        splits=splits,
        quarantined=left_out,
    )
    write_manifest(partial, manifest)
    for leftover in (partial / _PLAN_FILE, partial / PROGRESS_FILE):
        leftover.unlink(missing_ok=True)
    _sweep(partial)
    shutil.rmtree(partial / DONE_FOLDER)
    return manifest


def read_raw_counts(folder: Path) -> dict[str, RawCounts]:
    """What the raw images of a prepared data set are like, by split; empty for images that had no
    files."""
    file = folder / PREPARATION_FILE
    splits = json.loads(file.read_text())["splits"] if file.is_file() else {}
    return {name: RawCounts.model_validate(counts) for name, counts in splits.items()}


def _raw_counts(shards: list[ShardResult]) -> dict[str, int | dict[str, int]]:
    """What the raw images of these shards are like, added up."""
    total: dict[str, int | dict[str, int]] = {}
    for name, empty in vars(RawCounts()).items():
        counts = [getattr(shard, name) for shard in shards]
        if isinstance(empty, Counter):
            total[name] = dict(sorted(sum(counts, Counter()).items()))
        else:
            total[name] = sum(counts)
    return total
