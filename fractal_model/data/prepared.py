"""Read prepared data sets: images ready to train on, in memory-mapped Arrow files.

    <data>/<dataset>/manifest.json                       written last
    <data>/<dataset>/<split>/data-00000.arrow …          image (lossless WebP) and label
    <data>/<dataset>/<split>/{dataset_info,state}.json   files for Hugging Face `datasets`

Decided here: images stay encoded until they are needed. A shard is mapped when its first image is
needed, and pages that were read are released again, so a reader's memory stays small for a data set
of any size. The number of open files is limited too: systems often allow only 1,024. Arrow is
imported when a shard is opened, because many importers of this module only name its types.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakSet

import numpy as np
import PIL.Image
import torch

from fractal_model.common.errors import FractalError, one_line
from fractal_model.data.manifest import (
    REBUILD,
    Manifest,
    ShardRecord,
    image_checksum,
    read_manifest,
    split_record,
)
from fractal_model.data.object_store import LocalStore, Store, store_at

_OPEN_SHARDS = 256
"""Largest number of shards open at a time, because systems often allow only 1,024 open files.
ImageNet has 36 shards at 64 px, 564 at 256 px."""
_RELEASE_BYTES = 256 * 2**20
_TOUCHED_BYTES = 2 * 2**20  # The system may map this many bytes to read a single one.


class Example(NamedTuple):
    """One image of a split with its label."""

    image: torch.Tensor
    """Pixels: uint8 (3, H, W)."""
    label: int
    index: int  # type: ignore[assignment]  # It hides a method of tuple.
    """Position of the image in the whole split."""


class PreparedSplit(torch.utils.data.Dataset[Example]):
    """One split of a prepared data set, opened with `open_prepared` and memory-mapped, or a part of
    it. It can be pickled. `record` is the whole split's entry in `manifest`; `rows` are the
    positions of the part's images in the whole split, None for the whole split."""

    def __init__(
        self, *, store: Store, name: str, manifest: Manifest, rows: np.ndarray | None = None
    ) -> None:
        self.store = store
        self.name = name
        self.manifest = manifest
        self.rows = rows
        self.record = manifest.splits[name]
        self.class_names = manifest.class_names
        self._starts = np.cumsum([0, *(shard.images for shard in self.record.shards)])
        self._shard = lru_cache(_OPEN_SHARDS)(partial(_open_shard, store, name, manifest))
        self._touched: WeakSet[_Shard] = WeakSet()
        self._touched_bytes = 0

    def __len__(self) -> int:
        return self.record.images if self.rows is None else len(self.rows)

    def select(self, rows: np.ndarray) -> PreparedSplit:
        """Return the part of the whole split that has the images at the positions `rows`, in their
        order, int64 (n,)."""
        return PreparedSplit(store=self.store, name=self.name, manifest=self.manifest, rows=rows)

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("store", "name", "manifest", "rows")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        PreparedSplit.__init__(self, **state)

    def __getitem__(self, index: int) -> Example:
        """Return the image at position `index`, counted from the end if negative. Raises IndexError
        when there is no such position, and FractalError when the image cannot be decoded."""
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"no image {index} of split {self.name}, which has {size} images")
        return self._example(int(index % size))

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Return the images at the positions `indices`. PyTorch's DataLoader calls this for a whole
        batch."""
        return [self._example(int(index)) for index in indices]

    def load_all(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all images, uint8 (N, 3, H, W), and labels, int64 (N,). All must fit in RAM."""
        images = torch.stack([example.image for example in self.in_order()])
        return images, torch.from_numpy(self.labels())

    def labels(self) -> np.ndarray:
        """Return the labels of all images, int64 (N,), without decoding images."""
        shards = range(len(self.record.shards))
        # Each shard's labels are copied, because a view of a mapped file would keep it open.
        columns = [np.concatenate(self._shard(shard).labels) for shard in shards]
        labels = np.concatenate([np.empty(0, np.int64), *columns])
        return labels if self.rows is None else labels[self.rows]

    def in_order(self) -> Iterator[Example]:
        """Iterate over all examples in order, with one in memory at a time."""
        return (self._example(index) for index in range(len(self)))

    def _example(self, index: int) -> Example:
        row = index if self.rows is None else int(self.rows[index])
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        shard = self._shard(number)
        encoded, label = shard.row(row - int(self._starts[number]))
        image = self._decode(encoded, row)
        self._count_touched(shard, len(encoded))
        return Example(image, label, row)

    def _count_touched(self, shard: _Shard, encoded_bytes: int) -> None:
        """Count the memory that reading an image of `shard` has mapped, because it stays in use. If
        the sum is above _RELEASE_BYTES, release the pages of all shards that were read."""
        self._touched.add(shard)
        self._touched_bytes += encoded_bytes + _TOUCHED_BYTES
        if self._touched_bytes > _RELEASE_BYTES:
            for touched in self._touched:
                touched.release()
            self._touched.clear()
            self._touched_bytes = 0

    def _decode(self, encoded: bytes, index: int) -> torch.Tensor:
        """Return the pixels of an image, uint8 (3, H, W). FractalError: it cannot be decoded."""
        side = self.manifest.resolution
        try:
            with PIL.Image.open(BytesIO(encoded), formats=["WEBP"]) as picture:
                pixels = np.array(picture)
        except (OSError, ValueError) as error:
            reason = f"image {index} cannot be decoded"
            raise _damaged_error(self.store, self.name, reason) from error
        if pixels.shape != (side, side, 3):
            reason = f"image {index} has shape {pixels.shape}, expected {(side, side, 3)}"
            raise _damaged_error(self.store, self.name, reason)
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


class _Shard:
    """One Arrow file of a split, mapped with `mmap`, because Arrow's map cannot release pages."""

    def __init__(self, file: Path, record: ShardRecord) -> None:
        import pyarrow as pa

        with file.open("rb") as opened:
            self._map = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        batches = list(pa.ipc.open_stream(pa.py_buffer(self._map)))
        self._images = [batch.column("image").field("bytes") for batch in batches]
        self.labels = [batch.column("label").to_numpy() for batch in batches]
        self._starts = np.cumsum([0, *map(len, batches)])
        if self._starts[-1] != record.images:
            raise ValueError(f"it has {self._starts[-1]} images, the manifest says {record.images}")
        self.release()  # Finding the batches has read pages all over the file.

    def row(self, index: int) -> tuple[bytes, int]:
        """Return the encoded bytes and the label of the image at position `index` in the shard."""
        batch = int(np.searchsorted(self._starts, index, side="right")) - 1
        row = index - int(self._starts[batch])
        return self._images[batch][row].as_py(), int(self.labels[batch][row])

    def release(self) -> None:
        if sys.platform != "win32":
            self._map.madvise(mmap.MADV_DONTNEED)


def _open_shard(store: Store, split: str, manifest: Manifest, number: int) -> _Shard:
    record = manifest.splits[split].shards[number]
    with _explain_errors(store, split, record):
        return _Shard(store.local(record.file, record.bytes, manifest.checksum), record)


def open_prepared(place: Path | str, split: str) -> PreparedSplit:
    """Open a split of the prepared data set in a folder or at an address (s3://…).

    Opening reads no images. Raises FractalError when the place or its manifest is missing or
    unreadable, when the format version or the split is unknown, and, for a folder, when files of
    the split are missing or have another size than the manifest says.
    """
    manifest = read_manifest(place)
    store = store_at(place)
    if split not in manifest.splits:
        names = ", ".join(sorted(manifest.splits))
        raise FractalError(f"{store} has no split {split!r}: choose one of {names}")
    if isinstance(store, LocalStore):
        for shard in manifest.splits[split].shards:
            with _explain_errors(store, split, shard):
                store.local(shard.file, shard.bytes, manifest.checksum)
    return PreparedSplit(store=store, name=split, manifest=manifest)


def verify_prepared(
    place: Path | str, progress: Callable[[int], None] = lambda images: None
) -> Manifest:
    """Decode every image, compare counts and checksums with the manifest, and return the manifest.
    `progress` is called with the number of verified images. Raises FractalError when the data set
    cannot be opened, or when images of a split differ from the manifest."""
    manifest, verified = read_manifest(place), 0
    for name, expected in manifest.splits.items():
        split = open_prepared(place, name)
        side, classes = manifest.resolution, len(manifest.class_names)
        labels = split.labels()
        for position in np.flatnonzero((labels < 0) | (labels >= classes)):
            reason = f"image {position} has label {labels[position]}, expected 0 to {classes - 1}"
            raise _damaged_error(split.store, name, reason)
        checksums = bytearray()
        for image, label, index in split.in_order():
            checksums += image_checksum(image.permute(1, 2, 0).numpy().tobytes(), label)
            progress(verified + index + 1)
        verified += len(split)
        actual = split_record(side, classes, bytes(checksums), labels, expected.shards)
        if actual != expected:
            reason = f"its checksum is {actual.checksum[:12]}…, expected {expected.checksum[:12]}…"
            raise _damaged_error(split.store, name, reason)
    return manifest


@contextmanager
def _explain_errors(store: Store, split: str, record: ShardRecord) -> Iterator[None]:
    """Turn errors in opening the file of the shard `record` into a FractalError."""
    from pyarrow import ArrowException

    try:
        yield
    except FractalError:
        raise
    except (FileNotFoundError, ValueError, KeyError, ArrowException) as error:
        reason = f"{record.file} cannot be opened ({one_line(error)})"
        raise _damaged_error(store, split, reason) from error
    except OSError as error:
        raise FractalError(
            f"{record.file} of {store} cannot be read ({one_line(error)}): make it readable "
            f"and run again. The data set itself may be intact"
        ) from error


def _damaged_error(store: Store, split: str, reason: str) -> FractalError:
    return FractalError(
        f"split {split!r} of {store} is damaged: {reason}; build it again with {REBUILD}"
    )
