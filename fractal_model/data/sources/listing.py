"""The listing of a source: every image, where its bytes are and what it shows.

Decided here: a listing is columns, because ImageNet has 1.3 million rows; its order, by class and
name (or the files' own, for parquet), is the order of the prepared data set.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fractal_model.config import StrictModel
from fractal_model.errors import FractalError, one_line

WHOLE_FILE = -1

TRAIN, VALIDATION = "train", "validation"
Split = Literal["train", "validation"]

SCHEMA = pa.schema(
    {
        "split": pa.string(),
        "label": pa.int64(),
        "key": pa.string(),
        "file": pa.string(),
        "offset": pa.int64(),
        "size": pa.int64(),
    }
)


class ImageFile(NamedTuple):
    """One image of a source."""

    split: str
    label: int
    key: str
    """`<class>/<file name>`: unique in its split."""
    file: str
    """The file that holds its bytes, relative to the source's folder."""
    offset: int
    """WHOLE_FILE; in a tar archive the first byte; in a parquet file the row group."""
    size: int
    """Bytes; in a parquet file the row of the row group."""


class RefusedFile(StrictModel):
    """What looked like an image of the source and cannot be one."""

    split: str
    file: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """All images of a source. Made by `ListingBuilder`."""

    images: pa.Table
    """Columns of SCHEMA, split after split."""
    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    """Unique and without commas, in the order of the labels."""
    refused: tuple[RefusedFile, ...]

    def splits(self) -> tuple[str, ...]:
        return tuple(s for s in (TRAIN, VALIDATION) if self.count(s))

    def count(self, split: str) -> int:
        return self._of(split).num_rows

    def rows(self, split: str, start: int, stop: int) -> list[ImageFile]:
        """Images `start` to `stop` of the split, in order."""
        part = self._of(split).slice(start, stop - start)
        return [ImageFile(**row) for row in part.to_pylist()]

    @property
    def checksum(self) -> str:
        """SHA-256 of everything here: not of the images' bytes, but of their names and sizes."""
        content = hashlib.sha256(self._notes())
        for column in self.images.columns:
            for chunk in column.cast(pa.string()).to_pylist():
                content.update(chunk.encode() + b"\0")
        return content.hexdigest()

    def _of(self, split: str) -> pa.Table:
        return self.images.filter(pc.equal(self.images["split"], split))

    def _notes(self) -> bytes:
        notes = {
            "class_ids": self.class_ids,
            "class_names": self.class_names,
            "refused": [entry.model_dump() for entry in self.refused],
        }
        return json.dumps(notes, sort_keys=True).encode()

    def write(self, file: Path) -> None:
        partial = file.with_name(f".{file.name}.partial")
        table = self.images.replace_schema_metadata({"fractal": self._notes()})
        pq.write_table(table, partial)
        partial.replace(file)

    @staticmethod
    def read(file: Path) -> Listing:
        """FractalError: damaged. FileNotFoundError: missing."""
        try:
            table = pq.read_table(file)
            notes = json.loads(table.schema.metadata[b"fractal"])
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise FractalError(
                f"the listing {file} is damaged ({one_line(error)}): remove it and run again"
            ) from error
        return Listing(
            images=table.replace_schema_metadata(None),
            class_ids=tuple(notes["class_ids"]),
            class_names=tuple(notes["class_names"]),
            refused=tuple(RefusedFile(**entry) for entry in notes["refused"]),
        )


class ListingBuilder:
    """Collects what a source has; refuses what cannot be used, with the reason."""

    def __init__(self) -> None:
        self._columns: dict[str, list] = {name: [] for name in SCHEMA.names if name != "label"}
        self._classes: list[str] = []
        self._keys: set[tuple[str, str]] = set()
        self.refused: list[RefusedFile] = []

    def __len__(self) -> int:
        return len(self._classes)

    def add(self, split: str, class_id: str, name: str, file: str, offset: int, size: int) -> None:
        key = f"{class_id}/{name}"
        if (split, key) in self._keys:
            self.refuse(split, key, "there are two files of this name")
            return
        self._keys.add((split, key))
        self._classes.append(class_id)
        for column, value in zip(self._columns, (split, key, file, offset, size), strict=True):
            self._columns[column].append(value)

    def refuse(self, split: str, file: str, reason: str) -> None:
        self.refused.append(RefusedFile(split=split, file=file, reason=reason))

    def classes(self) -> set[str]:
        return set(self._classes)

    def build(self, names: dict[str, str], *, in_order: bool = False) -> Listing:
        """`names` is what classes are called, by id: its ids are the label space, with those
        found. `in_order` keeps the order of adding within a split."""
        ids = sorted(self.classes() | set(names))
        label = {class_id: number for number, class_id in enumerate(ids)}
        table = (
            pa.table({"label": [label[class_id] for class_id in self._classes], **self._columns})
            .select(SCHEMA.names)
            .cast(SCHEMA)
        )
        keys = [("split", "ascending")]
        if not in_order:
            keys += [("label", "ascending"), ("key", "ascending")]
        # Stable, unlike `sort_by`, once the position is the last key.
        position = pa.array(range(len(self._classes)), pa.int64())
        ordered = table.append_column("position", position).sort_by(
            [*keys, ("position", "ascending")]
        )
        return Listing(
            images=ordered.select(SCHEMA.names).combine_chunks(),
            class_ids=tuple(ids),
            class_names=unique_names(ids, names),
            refused=tuple(self.refused),
        )


def unique_names(ids: list[str], names: dict[str, str]) -> tuple[str, ...]:
    """The first of each class's names; with its id where two classes would be called the same."""
    first = [names.get(class_id, class_id).split(",")[0].strip() or class_id for class_id in ids]
    return tuple(
        f"{name} ({class_id})" if first.count(name) > 1 else name
        for class_id, name in zip(ids, first, strict=True)
    )
