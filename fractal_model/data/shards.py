"""Write shards: Arrow files of prepared images, which Hugging Face `datasets` can open.

Decided here: images are stored as lossless WebP at its fastest setting, which decodes fastest of
the formats measured (`make benchmark-data`). A shard has about 256 MiB; the resolution decides how
many images that is. A shard is written under a temporary name and renamed when it is complete.
"""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa

from fractal_model.common.files import atomic_file
from fractal_model.data.manifest import ShardRecord, SplitRecord, image_checksum, split_record

SHARD_BYTES = 256 * 2**20
_COMPRESSED = 0.6
"""Rough size of a photograph as lossless WebP, divided by its uncompressed size."""
_ROWS = 128
"""Number of images in an Arrow record batch, which stays in memory until it is full."""


def images_per_shard(resolution: int) -> int:
    """Return about how many images, `resolution` pixels wide and high, fill SHARD_BYTES bytes."""
    return max(1, int(SHARD_BYTES / (3 * resolution**2 * _COMPRESSED)))


def shard_name(number: int) -> str:
    return f"data-{number:05d}.arrow"


class ShardWriter:
    """Writes the images of one shard in the order of the calls of `add`. Use `write_shard`."""

    def __init__(self, file: Path, stream: pa.RecordBatchStreamWriter, schema: pa.Schema) -> None:
        self._file = file
        self._stream = stream
        self._schema = schema
        self._encoded: list[bytes] = []
        self._labels: list[int] = []
        self._checksums: list[bytes] = []

    def add(self, image: PIL.Image.Image, label: int) -> None:
        """Encode an RGB image, which has the data set's resolution, and add it to the shard."""
        webp = io.BytesIO()
        image.save(webp, format="WEBP", lossless=True, quality=0, method=0)
        self._encoded.append(webp.getvalue())
        self._labels.append(label)
        self._checksums.append(image_checksum(image.tobytes(), label))
        if len(self._encoded) == _ROWS:
            self.flush()

    @property
    def labels(self) -> np.ndarray:
        """Labels of the images added so far, int64 (N,)."""
        return np.array(self._labels, dtype=np.int64)

    @property
    def checksums(self) -> np.ndarray:
        """The `image_checksum` of each image added so far, uint8 (N, 32)."""
        return np.frombuffer(b"".join(self._checksums), dtype=np.uint8).reshape(-1, 32)

    def record(self) -> ShardRecord:
        """Return the shard's manifest entry. Call this after the block of `write_shard`."""
        return ShardRecord(
            file=f"{self._file.parent.name}/{self._file.name}",
            images=len(self._labels),
            bytes=self._file.stat().st_size,
        )

    def flush(self) -> None:
        """Write the images that are still in memory to the file."""
        if not self._encoded:
            return
        paths = pa.nulls(len(self._encoded), pa.string())
        images = pa.StructArray.from_arrays(
            [pa.array(self._encoded, pa.binary()), paths], names=["bytes", "path"]
        )
        labels = pa.array(self._labels[-len(self._encoded) :], pa.int64())
        self._stream.write_batch(pa.record_batch([images, labels], schema=self._schema))
        self._encoded.clear()


@contextmanager
def write_shard(file: Path, class_names: Sequence[str]) -> Iterator[ShardWriter]:
    """Yield a writer for the new shard `file`. An error in the `with` block leaves no file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    schema = split_features(class_names).arrow_schema
    with (
        atomic_file(file, unique=True) as partial,
        partial.open("wb") as opened,
        pa.ipc.new_stream(opened, schema) as stream,
    ):
        shard = ShardWriter(file, stream, schema)
        yield shard
        shard.flush()


def split_features(class_names: Sequence[str]) -> datasets.Features:
    """Return the columns of a shard and their types, as Hugging Face `datasets` needs them."""
    return datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=list(class_names))
    )


def complete_split(
    folder: Path,
    class_names: Sequence[str],
    resolution: int,
    shards: Iterable[tuple[ShardRecord, np.ndarray, np.ndarray]],
) -> SplitRecord:
    """Complete a split whose shards are in `folder`: write the two files that
    `datasets.load_from_disk` needs, and return the split's manifest entry. `shards` yields each
    shard's entry, the checksums of its images, uint8 (N, 32), and their labels, int64 (N,)."""
    records, checksums, labels = zip(*shards, strict=True)
    all_checksums, all_labels = np.concatenate(checksums).tobytes(), np.concatenate(labels)
    split = split_record(resolution, len(class_names), all_checksums, all_labels, records)
    datasets.DatasetInfo(features=split_features(class_names)).write_to_directory(str(folder))
    state: dict[str, object] = {
        "_data_files": [{"filename": Path(record.file).name} for record in records],
        "_fingerprint": split.checksum[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": folder.name,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    return split
