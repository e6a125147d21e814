"""Writing a prepared data set from images in memory, one after the other.

Decided here: a data set is written in a hidden folder beside its place and renamed when complete;
equal images give equal bytes. What takes files as its source, many of them, is `preparation`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
import PIL.Image

from fractal_model.common.errors import FractalError
from fractal_model.data.manifest import (
    ContentHash,
    Manifest,
    SplitRecord,
    write_manifest,
)
from fractal_model.data.shards import images_per_shard, shard_name, write_index, write_shard

LabelledImages = Iterable[tuple[np.ndarray, int]]


def write_prepared(
    folder: Path,
    *,
    dataset: str,
    source: str,
    preprocessing: str,
    resolution: int,
    class_names: Sequence[str],
    splits: Mapping[str, LabelledImages],
    shard_images: int | None = None,
) -> Manifest:
    """Writes a prepared data set to `folder`, in place of the one that may be there.

    Each split is an iterable of (image uint8 (resolution, resolution, 3), label), read once and
    in bounded memory; `shard_images` of it make a file, by default about 256 MiB. One process at a
    time may write to a folder.

    Raises FractalError when an image has another shape or type, a label no class, or a split no
    images. After any error `folder` is what it was before.
    """
    folder = Path(folder)
    partial = partial_folder(folder)
    recover(folder)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        records = {
            name: _write_split(
                partial / name,
                _checked(images, f"{dataset}/{name}", resolution, len(class_names)),
                class_names,
                ContentHash(resolution, len(class_names)),
                shard_images or images_per_shard(resolution),
            )
            for name, images in splits.items()
        }
        manifest = Manifest(
            dataset=dataset,
            source=source,
            preprocessing=preprocessing,
            resolution=resolution,
            class_names=tuple(class_names),
            splits=records,
        )
        write_manifest(partial, manifest)
        put_in_place(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def partial_folder(folder: Path) -> Path:
    """Where a data set is written until it is complete."""
    return folder.with_name(f".{folder.name}.partial")


def put_in_place(folder: Path) -> None:
    """Renames what `partial_folder` holds to `folder`, in place of what is there."""
    old = _old_folder(folder)
    if folder.exists():
        folder.rename(old)
    partial_folder(folder).rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Mends what a run left that was killed while it put a data set in place."""
    old = _old_folder(folder)
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _old_folder(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _write_split(
    folder: Path,
    images: Iterator[tuple[np.ndarray, int]],
    class_names: Sequence[str],
    content: ContentHash,
    shard_images: int,
) -> SplitRecord:
    shards, first = [], next(images, None)
    while first is not None:
        with write_shard(folder / shard_name(len(shards)), class_names) as shard:
            for image, label in chain([first], islice(images, shard_images - 1)):
                shard.add(PIL.Image.fromarray(image), label)
        content.add(shard.digests, shard.labels)
        shards.append(shard.record())
        first = next(images, None)
    record = content.record(shards)
    write_index(folder, class_names, shards, record.checksum)
    return record


def _checked(
    images: LabelledImages, where: str, resolution: int, classes: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Passes the images on. Raises FractalError for one that is unfit."""
    shape, index = (resolution, resolution, 3), -1
    for index, (image, label) in enumerate(images):
        if image.dtype != np.uint8 or image.shape != shape:
            raise FractalError(
                f"image {index} of {where} is {image.dtype} {image.shape}, expected uint8 {shape}"
            )
        if not 0 <= label < classes:
            raise FractalError(
                f"image {index} of {where} has label {label}, expected 0 to {classes - 1}"
            )
        yield image, int(label)
    if index < 0:
        raise FractalError(f"{where} has no images: expected one or more, check the source")
