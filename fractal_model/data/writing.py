"""Write a prepared data set from images in memory, one after the other.

Decided here: a data set is written to a hidden folder beside its final place and renamed when it is
complete. Equal images give equal bytes. `preparation` builds data sets from image files.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
import PIL.Image

from fractal_model.common.errors import FractalError
from fractal_model.data.manifest import Manifest, ShardRecord, write_manifest
from fractal_model.data.shards import complete_split, images_per_shard, shard_name, write_shard

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
    """Write a prepared data set to `folder` and replace the one that may be there.

    Each split is an iterable of (image uint8 (resolution, resolution, 3), label). It is read once,
    one image at a time. A shard has `shard_images` images, by default as many as fill about
    256 MiB. Only one process at a time may write to a folder.

    Raises FractalError when an image has a wrong shape or type, when a label has no class, and when
    a split has no images. After any error `folder` is unchanged.
    """
    partial = partial_folder(folder)
    recover(folder)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        largest = shard_images or images_per_shard(resolution)
        records = {}
        for name, images in splits.items():
            valid = _check_images(images, f"{dataset}/{name}", resolution, len(class_names))
            shards = _write_shards(partial / name, valid, class_names, largest)
            records[name] = complete_split(partial / name, class_names, resolution, shards)
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
    """Return the folder in which a data set is written until it is complete."""
    return folder.with_name(f".{folder.name}.partial")


def put_in_place(folder: Path) -> None:
    """Rename `partial_folder(folder)` to `folder` and remove the data set that was there."""
    old = _old_folder(folder)
    if folder.exists():
        folder.rename(old)
    partial_folder(folder).rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Restore the old data set if a run was killed between the two renames of `put_in_place`."""
    old = _old_folder(folder)
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _old_folder(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _write_shards(
    folder: Path, images: Iterator[tuple[np.ndarray, int]], class_names: Sequence[str], largest: int
) -> Iterator[tuple[ShardRecord, np.ndarray, np.ndarray]]:
    """Write shards of up to `largest` images to `folder`. Yield for each shard its manifest entry,
    and the checksums and labels of its images."""
    number, first = 0, next(images, None)
    while first is not None:
        with write_shard(folder / shard_name(number), class_names) as shard:
            for image, label in chain([first], islice(images, largest - 1)):
                shard.add(PIL.Image.fromarray(image), label)
        yield shard.record(), shard.checksums, shard.labels
        number, first = number + 1, next(images, None)


def _check_images(
    images: LabelledImages, split: str, resolution: int, classes: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the images and labels unchanged. FractalError: an image has a wrong shape, type or
    label, or there are no images."""
    shape, index = (resolution, resolution, 3), -1
    for index, (image, label) in enumerate(images):
        if image.dtype != np.uint8 or image.shape != shape:
            raise FractalError(
                f"image {index} of {split} is {image.dtype} {image.shape}, expected uint8 {shape}"
            )
        if not 0 <= label < classes:
            raise FractalError(
                f"image {index} of {split} has label {label}, expected 0 to {classes - 1}"
            )
        yield image, int(label)
    if index < 0:
        raise FractalError(f"{split} has no images: expected one or more, check the source")
