"""Writing prepared images: Arrow files that Hugging Face `datasets` opens, and their manifest.

Decided here: images are lossless WebP at its fastest setting, the cheapest to decode of what was
measured (`make benchmark-data`); a shard has a number of images that its resolution decides, about
256 MiB; a shard is written beside its place and renamed.
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
"""Share of the raw bytes that lossless WebP leaves of photographs, roughly."""
_ROWS = 128
"""Images of a record batch: held in memory while writing."""


def images_per_shard(resolution: int) -> int:
    return max(1, int(SHARD_BYTES / (3 * resolution**2 * _COMPRESSED)))


def shard_name(number: int) -> str:
    return f"data-{number:05d}.arrow"


class ShardWriter:
    """Takes the images of one shard, in order. Made by `write_shard`."""

    def __init__(self, file: Path, stream: pa.RecordBatchStreamWriter, schema: pa.Schema) -> None:
        self._file = file
        self._stream = stream
        self._schema = schema
        self._encoded: list[bytes] = []
        self._labels: list[int] = []
        self._digests: list[bytes] = []

    def add(self, image: PIL.Image.Image, label: int) -> None:
        """Encode and keep an RGB image of the data set's resolution."""
        webp = io.BytesIO()
        image.save(webp, format="WEBP", lossless=True, quality=0, method=0)
        self._encoded.append(webp.getvalue())
        self._labels.append(label)
        self._digests.append(image_checksum(image.tobytes(), label))
        if len(self._encoded) == _ROWS:
            self.flush()

    @property
    def labels(self) -> np.ndarray:
        """int64 (N,)"""
        return np.array(self._labels, dtype=np.int64)

    @property
    def checksums(self) -> np.ndarray:
        """uint8 (N, 32)"""
        return np.frombuffer(b"".join(self._digests), dtype=np.uint8).reshape(-1, 32)

    def record(self) -> ShardRecord:
        """The shard's entry in the manifest, once its file is complete."""
        return ShardRecord(
            file=f"{self._file.parent.name}/{self._file.name}",
            images=len(self._labels),
            bytes=self._file.stat().st_size,
        )

    def flush(self) -> None:
        """Write the images that are still in memory."""
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
    """Yield the writer of one shard; an error in the block leaves nothing behind."""
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
    return datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=list(class_names))
    )


def complete_split(
    folder: Path,
    class_names: Sequence[str],
    resolution: int,
    shards: Iterable[tuple[ShardRecord, np.ndarray, np.ndarray]],
) -> SplitRecord:
    """The split's entry in the manifest, from each shard's entry, digests and labels.

    Writes the two files that `datasets.load_from_disk` wants beside the shards.
    """
    records, digests, labels = zip(*shards, strict=True)
    sums, classes = np.concatenate(digests).tobytes(), np.concatenate(labels)
    split = split_record(resolution, len(class_names), sums, classes, records)
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
