"""Writing prepared images: Arrow files that Hugging Face `datasets` opens, and their manifest.

Decided here: images are lossless WebP at its fastest setting, the cheapest to decode of what was
measured (`make benchmark-data`); a shard has a number of images that its resolution decides, about
256 MiB; a shard is written beside its place and renamed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self
from uuid import uuid4

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa

from fractal_model.data.manifest import ShardRecord, image_digest

SHARD_BYTES = 256 * 2**20
_COMPRESSED = 0.6
"""Share of the raw bytes that lossless WebP leaves of photographs, roughly."""
_ROWS = 128
"""Images of a record batch: held in memory while writing."""


def images_per_shard(resolution: int) -> int:
    return max(1, int(SHARD_BYTES / (3 * resolution**2 * _COMPRESSED)))


def shard_name(number: int) -> str:
    return f"data-{number:05d}.arrow"


def partial_name(file: Path) -> Path:
    """Where `file` is written until it is whole: a name that no other writer has, because one that
    was left behind by a killed run, here or on another machine, may still be writing the same."""
    return file.with_name(f".{file.name}.{uuid4().hex}.partial")


def remove_partial(folder: Path) -> None:
    """What writers that were killed left in `folder`."""
    for file in folder.glob(".*.partial"):
        file.unlink(missing_ok=True)


class ShardWriter:
    """Writes one shard; use it in a `with`. Left by an error, it leaves nothing behind."""

    def __init__(self, file: Path, class_names: Sequence[str]) -> None:
        self._file = file
        self._partial = partial_name(file)
        self._features = split_features(class_names)
        self._encoded: list[bytes] = []
        self._labels: list[int] = []
        self._digests: list[bytes] = []
        self._written = 0

    def __enter__(self) -> Self:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._sink = self._partial.open("wb")
        self._stream = pa.ipc.new_stream(self._sink, self._features.arrow_schema)
        return self

    def add(self, image: PIL.Image.Image, label: int) -> None:
        """An RGB image of the data set's resolution."""
        webp = io.BytesIO()
        image.save(webp, format="WEBP", lossless=True, quality=0, method=0)
        self._encoded.append(webp.getvalue())
        self._labels.append(label)
        self._digests.append(image_digest(image.tobytes(), label))
        if len(self._encoded) == _ROWS:
            self._flush()

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def labels(self) -> np.ndarray:
        """int64 (N,)"""
        return np.array(self._labels, dtype=np.int64)

    @property
    def digests(self) -> np.ndarray:
        """uint8 (N, 32)"""
        return np.frombuffer(b"".join(self._digests), dtype=np.uint8).reshape(-1, 32)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
                self._stream.close()
        finally:
            self._sink.close()
            if kind is not None:
                self._partial.unlink(missing_ok=True)
        if kind is None:
            self._partial.replace(self._file)

    def record(self) -> ShardRecord:
        """Once it is closed."""
        return ShardRecord(
            file=f"{self._file.parent.name}/{self._file.name}",
            images=len(self),
            bytes=self._file.stat().st_size,
        )

    def _flush(self) -> None:
        if not self._encoded:
            return
        paths = pa.nulls(len(self._encoded), pa.string())
        images = pa.StructArray.from_arrays(
            [pa.array(self._encoded, pa.binary()), paths], names=["bytes", "path"]
        )
        labels = pa.array(self._labels[self._written :], pa.int64())
        schema = self._features.arrow_schema
        self._stream.write_batch(pa.record_batch([images, labels], schema=schema))
        self._written = len(self._labels)
        self._encoded.clear()


def split_features(class_names: Sequence[str]) -> datasets.Features:
    return datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=list(class_names))
    )


def write_index(
    folder: Path, class_names: Sequence[str], shards: Iterable[ShardRecord], checksum: str
) -> None:
    """The two files that `datasets.load_from_disk` wants beside the shards of a split."""
    datasets.DatasetInfo(features=split_features(class_names)).write_to_directory(str(folder))
    state = {
        "_data_files": [{"filename": Path(shard.file).name} for shard in shards],
        "_fingerprint": checksum[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": folder.name,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
