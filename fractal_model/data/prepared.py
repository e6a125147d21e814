"""The prepared format: images ready to train on, as memory-mapped Arrow files beside a manifest.

    <data>/<dataset>/manifest.json                       written last
    <data>/<dataset>/<split>/data-00000-of-00001.arrow   image (PNG bytes) and label
    <data>/<dataset>/<split>/{dataset_info,state}.json   of Hugging Face `datasets`

Decided here: a data set is written in a hidden folder beside its place and renamed when complete;
equal images give equal bytes; images stay PNG until they are asked for (`PreparedSplit`).
Peak disk use while writing is what is written plus a second copy of the split at hand.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import PIL.Image
import torch

from fractal_model.data.manifest import (
    ContentHash,
    Manifest,
    QuarantinedFile,
    SplitRecord,
    read_manifest,
    write_manifest,
)
from fractal_model.errors import FractalError

# Asking for the bars is setting HF_DATASETS_DISABLE_PROGRESS_BARS=0, which is not None.
if datasets.config.HF_DATASETS_DISABLE_PROGRESS_BARS is None:
    datasets.disable_progress_bars()

_CHUNK = 128  # images held in memory at a time

LabelledImages = Iterable[tuple[np.ndarray, int]]


class Example(NamedTuple):
    image: torch.Tensor
    """uint8 (3, H, W)"""
    label: int
    index: int
    """Position in the split."""


class PreparedSplit(torch.utils.data.Dataset[Example]):
    """One split, memory-mapped: opening it reads no images, and it can be pickled.

    Open it with `open_prepared`. `record` is the split's entry in `manifest`.
    """

    def __init__(
        self, *, folder: Path, name: str, manifest: Manifest, rows: datasets.Dataset
    ) -> None:
        self.folder = folder
        self.name = name
        self.manifest = manifest
        self.record = manifest.splits[name]
        self.class_names = manifest.class_names
        # Arrow rows are several times faster to fetch than decoded Python rows.
        self._rows = rows.with_format("arrow")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        """Raises IndexError outside the split, FractalError when an image cannot be decoded."""
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"image {index} of split {self.name}, which has {size}")
        return self.__getitems__([index % size])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Several at once: PyTorch's DataLoader asks for a whole batch with this."""
        rows = self._rows[[int(index) for index in indices]]
        pngs, labels = rows["image"].to_pylist(), rows["label"].to_pylist()
        return [
            Example(self._decode(png["bytes"], index), label, index)
            for png, label, index in zip(pngs, labels, map(int, indices), strict=True)
        ]

    def load_all(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Everything in memory, for small sets: images uint8 (N, 3, H, W), labels int64 (N,)."""
        side = self.manifest.resolution
        images = torch.empty(len(self), 3, side, side, dtype=torch.uint8)
        labels = torch.empty(len(self), dtype=torch.int64)
        for image, label, index in self.in_order():
            images[index], labels[index] = image, label
        return images, labels

    def in_order(self) -> Iterator[Example]:
        """Every example from first to last, a bounded number of them in memory."""
        for start in range(0, len(self), _CHUNK):
            yield from self.__getitems__(range(start, min(start + _CHUNK, len(self))))

    def _decode(self, png: bytes, index: int) -> torch.Tensor:
        """uint8 (3, H, W). Raises FractalError that names the image."""
        side = self.manifest.resolution
        try:
            with PIL.Image.open(BytesIO(png)) as picture:
                pixels = np.array(picture)
        # Pillow raises SyntaxError for a broken PNG chunk.
        except (OSError, ValueError, SyntaxError) as error:
            raise _damaged(self.folder, self.name, f"image {index} cannot be decoded") from error
        if pixels.shape != (side, side, 3):
            found = f"image {index} has shape {pixels.shape}, expected {(side, side, 3)}"
            raise _damaged(self.folder, self.name, found)
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def open_prepared(folder: Path, split: str) -> PreparedSplit:
    """Opens the split `split` of the prepared data set in `folder`; reads no images.

    Raises FractalError when the folder or its manifest is missing or unreadable, when the format
    version or the split is unknown, and when the Arrow files are damaged or hold another number
    of images than the manifest says.
    """
    folder = Path(folder).resolve()
    manifest = read_manifest(folder)
    if split not in manifest.splits:
        known = ", ".join(sorted(manifest.splits))
        raise FractalError(f"{folder} has no split {split!r}: choose one of {known}")
    try:
        rows = datasets.load_from_disk(str(folder / split))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, split, "its Arrow files cannot be opened") from error
    if len(rows) != manifest.splits[split].images:
        expected = manifest.splits[split].images
        raise _damaged(folder, split, f"it has {len(rows)} images, the manifest says {expected}")
    return PreparedSplit(folder=folder, name=split, manifest=manifest, rows=rows)


def verify_prepared(folder: Path) -> None:
    """Decodes every image and compares counts and checksums with the manifest.

    Raises FractalError that names the split that disagrees, and for all that `open_prepared` does.
    """
    manifest = read_manifest(Path(folder))
    for name, expected in manifest.splits.items():
        split = open_prepared(folder, name)
        content = ContentHash(manifest.resolution, len(manifest.class_names))
        for image, label, index in split.in_order():
            if not 0 <= label < len(manifest.class_names):
                raise _damaged(split.folder, name, f"image {index} has label {label}")
            content.add(image.permute(1, 2, 0).numpy(), label)
        found = content.record()
        if found != expected:
            sums = f"its checksum is {found.checksum[:12]}…, expected {expected.checksum[:12]}…"
            raise _damaged(split.folder, name, sums)


def write_prepared(
    folder: Path,
    *,
    dataset: str,
    source: str,
    preprocessing: str,
    resolution: int,
    class_names: Sequence[str],
    splits: Mapping[str, LabelledImages],
    max_shard_size: int | str = "256MB",
    quarantined: Iterable[QuarantinedFile] = (),
    encoder_threads: int = 1,
) -> Manifest:
    """Writes a prepared data set to `folder`, in place of the one that may be there.

    Each split is an iterable of (image uint8 (resolution, resolution, 3), label), read once and
    in bounded memory. `quarantined` is read after the splits, so that whoever yields the images
    can fill it. The bytes written do not depend on `encoder_threads` (PNG encoders at a time).
    One process at a time may write to a folder.

    Raises FractalError when an image has another shape or type, a label no class, or a split no
    images. After any error `folder` is what it was before.
    """
    folder = Path(folder)
    partial, old = (folder.with_name(f".{folder.name}.{end}") for end in ("partial", "old"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    _clear_interrupted(folder, partial, old)
    try:
        records = {}
        for name, images in splits.items():
            content = ContentHash(resolution, len(class_names))
            checked = _checked(images, f"{dataset}/{name}", resolution, content)
            rows = _encoded(checked, encoder_threads)
            records[name] = _write_split(partial / name, rows, class_names, content, max_shard_size)
        manifest = Manifest(
            dataset=dataset,
            source=source,
            preprocessing=preprocessing,
            resolution=resolution,
            class_names=tuple(class_names),
            splits=records,
            quarantined=tuple(quarantined),
        )
        write_manifest(partial, manifest)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    finally:
        _clear_interrupted(folder, partial, old)
    return manifest


def _clear_interrupted(folder: Path, partial: Path, old: Path) -> None:
    """Removes what a killed run left behind; brings back what it had already moved away."""
    if old.exists() and not folder.exists():
        old.rename(folder)
    for leftover in (partial, old):
        if leftover.exists():
            shutil.rmtree(leftover)


def _write_split(
    folder: Path,
    rows: Iterator[dict[str, Any]],
    class_names: Sequence[str],
    content: ContentHash,
    max_shard_size: int | str,
) -> SplitRecord:
    """Streams the rows through `datasets` into `folder`."""
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=list(class_names))
    )
    cache = folder.with_name(f".cache-{folder.name}")
    try:
        streamed = datasets.Dataset.from_generator(
            lambda: rows,
            features=features,
            cache_dir=str(cache),
            # Given, because the default hashes the generator with everything that it refers to.
            fingerprint=folder.name,
            split=datasets.NamedSplit(folder.name),
        )
    except datasets.exceptions.DatasetGenerationError as error:
        # `datasets` wraps what the source raised; the source's own words say what to do.
        raise (error.__cause__ or error) from None
    record = content.record()
    # The builder's information holds the cache's paths and sizes; this one is the same each run.
    same_each_run = datasets.Dataset(
        streamed.data,
        info=datasets.DatasetInfo(features=features),
        split=streamed.split,
        fingerprint=record.checksum[:16],
    )
    same_each_run.save_to_disk(str(folder), max_shard_size=max_shard_size)
    shutil.rmtree(cache)
    return record


def _checked(
    images: LabelledImages, where: str, resolution: int, content: ContentHash
) -> Iterator[tuple[np.ndarray, int]]:
    """Passes the images on, adding each to `content`. Raises FractalError for one that is unfit."""
    shape, classes, index = (resolution, resolution, 3), content.classes, -1
    for index, (image, label) in enumerate(images):
        if image.dtype != np.uint8 or image.shape != shape:
            raise FractalError(
                f"image {index} of {where} is {image.dtype} {image.shape}, expected uint8 {shape}"
            )
        if not 0 <= label < classes:
            raise FractalError(
                f"image {index} of {where} has label {label}, expected 0 to {classes - 1}"
            )
        content.add(image, int(label))
        yield image, int(label)
    if index < 0:
        raise FractalError(f"{where} has no images: expected one or more, check the source")


def _encoded(images: LabelledImages, threads: int) -> Iterator[dict[str, Any]]:
    """Rows for `datasets`, in order. Pillow lets go of the interpreter's lock while it encodes."""
    images = iter(images)
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(islice(images, _CHUNK)):
            yield from pool.map(_encode, chunk)


def _encode(example: tuple[np.ndarray, int]) -> dict[str, Any]:
    image, label = example
    png = BytesIO()
    PIL.Image.fromarray(image).save(png, format="PNG")
    return {"image": {"bytes": png.getvalue(), "path": None}, "label": label}


def _damaged(folder: Path, split: str, found: str) -> FractalError:
    return FractalError(
        f"split {split!r} of {folder} is damaged: {found}; build it again with `dvc repro --force`"
    )
