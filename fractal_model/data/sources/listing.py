"""The listing of a source: every image, where its bytes are and what it shows.

Decided here: a listing is columns, because ImageNet has 1.3 million rows; its order, by class and
name (or the files' own, for parquet), is the order of the prepared data set. Classes that are
called by numerals are in the order of their numbers, so that 0 … n - 1 are their own labels.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, get_type_hints

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.files import atomic_file
from fractal_model.common.strict import StrictModel
from fractal_model.config.model import UNCONDITIONAL

WHOLE_FILE = -1
LARGEST_IMAGE = 256 * 2**20
"""Bytes. Larger files are refused by their size, before they are read into memory; the largest
photograph of ImageNet has 16 MB."""

NO_TRUTH = "the ground truth does not name its class"
"""Why a validation image is refused."""

TRAIN, VALIDATION = "train", "validation"
Progress = Callable[[int], None]
"""Told how many images are done."""

_HASHED_ROWS = 100_000
_CONTROL = ("Cc", "Zl", "Zp")  # of Unicode: control characters, line and paragraph separators


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


_TYPES = {str: pa.string(), int: pa.int64()}
SCHEMA = pa.schema({name: _TYPES[kind] for name, kind in get_type_hints(ImageFile).items()})


class RefusedFile(StrictModel):
    """What looked like an image of the source and cannot be one."""

    split: str
    file: str
    reason: str


class Listing(StrictModel, arbitrary_types_allowed=True):
    """All images of a source. Made by `ListingBuilder`."""

    images: pa.Table
    """Columns of SCHEMA, split after split."""
    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    """Unique, in the order of the labels."""
    refused: tuple[RefusedFile, ...]
    unused: tuple[str, ...]
    """`<split>/<class>`: classes without an image that can be used."""
    files: dict[str, str]
    """What tells a file's contents apart, by its name, where rows do not tell images' sizes."""

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
            if pa.types.is_integer(column.type):
                content.update(column.to_numpy().tobytes())
                continue
            content.update(pc.binary_length(column).to_numpy().tobytes())
            for start in range(0, len(column), _HASHED_ROWS):
                strings = column.slice(start, _HASHED_ROWS).to_numpy()
                content.update("".join(strings).encode())
        return content.hexdigest()

    def _of(self, split: str) -> pa.Table:
        return self.images.filter(pc.equal(self.images["split"], split))

    def _notes(self) -> bytes:
        """All but the images."""
        return json.dumps(self.model_dump(exclude={"images"}), sort_keys=True).encode()

    def write(self, file: Path) -> None:
        table = self.images.replace_schema_metadata({"fractal": self._notes()})
        with atomic_file(file) as partial:
            pq.write_table(table, partial)

    @staticmethod
    def read(file: Path) -> Listing:
        """FractalError: damaged. FileNotFoundError: missing."""
        try:
            table = pq.read_table(file)
            notes = json.loads(table.schema.metadata[b"fractal"])
            return Listing(images=table.replace_schema_metadata(None), **notes)
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise FractalError(
                f"the listing {file} is damaged ({one_line(error)}): remove it and run again"
            ) from error


class ListingBuilder:
    """Collects what a source has; refuses what cannot be used, with the reason."""

    def __init__(self) -> None:
        self._columns: dict[str, list] = {name: [] for name in SCHEMA.names if name != "label"}
        self._classes: list[str] = []
        self._keys: set[tuple[str, str]] = set()
        self.refused: list[RefusedFile] = []
        self.unused: list[str] = []
        self.files: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._classes)

    def add(self, split: str, class_id: str, name: str, file: str, offset: int, size: int) -> None:
        """One image, `name` of its class. Refused: a name seen before, or one that is no text."""
        key = f"{class_id}/{name}"
        if (split, key) in self._keys:
            self.refuse(split, key, "there are two files of this name")
            return
        if printable_name(key) != key or printable_name(file) != file:
            self.refuse(split, key, "its name is not UTF-8 or has control characters: rename it")
            return
        self._keys.add((split, key))
        self._classes.append(class_id)
        for column, value in zip(self._columns, (split, key, file, offset, size), strict=True):
            self._columns[column].append(value)

    def refuse(self, split: str, file: str, reason: str) -> None:
        self.refused.append(
            RefusedFile(split=split, file=printable_name(file), reason=printable_name(reason))
        )

    def note_unused(self, split: str, class_id: str) -> None:
        """No image of this class can be used: its folder is empty, or all in it was refused."""
        self.unused.append(printable_name(f"{split}/{class_id}"))

    def classes(self) -> set[str]:
        return set(self._classes)

    def hold_out(self, share: float) -> None:
        """Move this share of each class's images, at least one, to the validation split: those
        whose keys have the lowest hashes. A class of one image keeps it."""
        keys, positions = self._columns["key"], defaultdict(list)
        for position, class_id in enumerate(self._classes):
            positions[class_id].append(position)
        for of_class in positions.values():
            of_class.sort(key=lambda at: hashlib.sha256(os.fsencode(keys[at])).digest())
            count = max(1, round(share * len(of_class))) if len(of_class) > 1 else 0
            for position in of_class[:count]:
                self._columns["split"][position] = VALIDATION

    def build(self, names: dict[str, str], *, in_order: bool = False) -> Listing:
        """`names` is what classes are called, by id: its ids are the label space, with those
        found. `in_order` keeps the order of adding within a split. FractalError: a class's name
        is not allowed."""
        ids = sorted(self.classes() | set(names), key=_class_sort_key)
        class_names = unique_names(ids, names)
        _require_askable(class_names)
        label = {class_id: number for number, class_id in enumerate(ids)}
        columns = {"label": [label[class_id] for class_id in self._classes], **self._columns}
        table = pa.table(columns, schema=SCHEMA)
        keys = [("split", "ascending")]
        if not in_order:
            keys += [("label", "ascending"), ("key", "ascending")]
        # Stable, unlike `sort_by`, once the position is the last key.
        position = pa.array(range(len(self)), pa.int64())
        ordered = table.append_column("position", position).sort_by(
            [*keys, ("position", "ascending")]
        )
        return Listing(
            images=ordered.select(SCHEMA.names).combine_chunks(),
            class_ids=tuple(ids),
            class_names=class_names,
            refused=tuple(self.refused),
            unused=tuple(sorted(self.unused)),
            files=dict(sorted(self.files.items())),
        )


def _require_askable(class_names: tuple[str, ...]) -> None:
    for name in class_names:
        if name.strip().casefold() == UNCONDITIONAL:
            raise FractalError(
                f"a class is called {name!r}, the word by which a sample of no class is asked "
                f"for: rename it, to nothing for example"
            )


def _class_sort_key(class_id: str) -> tuple[bool, int, str]:
    """Sorts numerals as numbers, before other names."""
    is_numeral = class_id.isascii() and class_id.isdecimal()
    return not is_numeral, int(class_id) if is_numeral else 0, class_id


def printable_name(name: str) -> str:
    """The name with bytes that are no UTF-8, and what ends a line, escaped, as in `caf\\xe9`."""
    if name.isascii() and name.isprintable():
        return name
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _CONTROL else c
        for c in text
    )


def size_refusal(size: int) -> str | None:
    """Why a file of so many bytes is no image, if so."""
    if size == 0:
        return "the file is empty"
    if size > LARGEST_IMAGE:
        return f"it has {size:,} bytes, at most {LARGEST_IMAGE:,} are read as an image"
    return None


def unique_names(ids: list[str], names: dict[str, str]) -> tuple[str, ...]:
    """The first of each class's names, or its id, which is added where two would be the same."""
    first = [names.get(class_id, "").split(",")[0].strip() or class_id for class_id in ids]
    return tuple(
        f"{name} ({class_id})" if first.count(name) > 1 else name
        for class_id, name in zip(ids, first, strict=True)
    )
