"""The listing of a source: the class of every image, and the place of its bytes.

Decided here: a listing is a table of columns, because ImageNet has 1.3 million images. The prepared
data set has the listing's order: by class and name, or for parquet and the hub as in the files.
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
from fractal_model.data.sources.class_names import number_classes

WHOLE_FILE = -1  # `ImageFile.offset` of an image that is a whole file
LARGEST_IMAGE = 256 * 2**20
"""Largest size of an image's file, in bytes. Larger files are refused before they are read into
memory. ImageNet's largest photograph has 16 MB."""

NO_TRUTH = "the ground truth does not name its class"
"""Reason to refuse a validation image of unknown class."""

TRAIN, VALIDATION = "train", "validation"
SPLIT_NAMES = {"train": TRAIN, "validation": VALIDATION, "valid": VALIDATION, "val": VALIDATION}
"""Names that files, folders and columns use for the splits, in lower case."""
Progress = Callable[[int], None]
"""Function that is called again and again with the number of images that are done."""

_HASHED_ROWS = 100_000
_CONTROL = ("Cc", "Zl", "Zp")  # Unicode: control characters, line and paragraph separators


class ImageFile(NamedTuple):
    """One image of a source."""

    split: str
    label: int
    key: str
    """Name of the image, `<class>/<file name>`, unique in its split."""
    file: str
    """Path of the file with the image's bytes, relative to the source's folder."""
    offset: int
    """Where the image is in `file`. In a tar archive: number of its first byte. In a parquet file:
    number of its row group. WHOLE_FILE if the image is the whole file."""
    size: int
    """Number of bytes of the image. In a parquet file: index of its row in the row group, from
    0."""


_TYPES = {str: pa.string(), int: pa.int64()}
SCHEMA = pa.schema({name: _TYPES[kind] for name, kind in get_type_hints(ImageFile).items()})


class RefusedFile(StrictModel):
    """A file that cannot be used as an image of the source, and the reason."""

    split: str
    file: str
    reason: str


class Listing(StrictModel, arbitrary_types_allowed=True):
    """All images of a source. `ListingBuilder` builds it."""

    images: pa.Table
    """One row for each image, with the columns of SCHEMA, sorted by split."""
    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    """Unique class names in the order of the labels."""
    refused: tuple[RefusedFile, ...]
    unused: tuple[str, ...]
    """Classes without a usable image, as `<split>/<class>`."""
    files: dict[str, str]
    """Checksums of the files with the images, by path, for parquet and the hub; else empty. The
    listing's checksum covers them, because the images' sizes are not listed for parquet files."""

    def splits(self) -> tuple[str, ...]:
        """Return the names of the splits that have images."""
        return tuple(s for s in (TRAIN, VALIDATION) if self.count(s))

    def count(self, split: str) -> int:
        return self._of_split(split).num_rows

    def rows(self, split: str, start: int, stop: int) -> list[ImageFile]:
        """Return the images `start` to `stop` - 1 of a split, in order."""
        part = self._of_split(split).slice(start, stop - start)
        return [ImageFile(**row) for row in part.to_pylist()]

    @property
    def checksum(self) -> str:
        """SHA-256 of the listing: it covers the images' names and sizes, not their bytes."""
        checksum = hashlib.sha256(self._metadata())
        for column in self.images.columns:
            if pa.types.is_integer(column.type):
                checksum.update(column.to_numpy().tobytes())
                continue
            checksum.update(pc.binary_length(column).to_numpy().tobytes())
            for start in range(0, len(column), _HASHED_ROWS):
                strings = column.slice(start, _HASHED_ROWS).to_numpy()
                checksum.update("".join(strings).encode())
        return checksum.hexdigest()

    def _of_split(self, split: str) -> pa.Table:
        return self.images.filter(pc.equal(self.images["split"], split))

    def _metadata(self) -> bytes:
        """Return all fields except the images as JSON."""
        return json.dumps(self.model_dump(exclude={"images"}), sort_keys=True).encode()

    def write(self, file: Path) -> None:
        """Write the listing to a parquet file."""
        table = self.images.replace_schema_metadata({"fractal": self._metadata()})
        with atomic_file(file) as partial:
            pq.write_table(table, partial)

    @staticmethod
    def read(file: Path) -> Listing:
        """Read a listing. Raises FileNotFoundError, and FractalError when the file is damaged."""
        try:
            table = pq.read_table(file)
            fields = json.loads(table.schema.metadata[b"fractal"])
            return Listing(images=table.replace_schema_metadata(None), **fields)
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise FractalError(
                f"the listing {file} is damaged ({one_line(error)}): remove it and run again"
            ) from error


class ListingBuilder:
    """Collects the images of a source, and refused files with the reasons, into a `Listing`."""

    def __init__(self, names: dict[str, str] | None = None, *, in_order: bool = False) -> None:
        """`names` has class names by class id; these classes count even without images. With
        `in_order`, the images of a split keep the order in which they are added; else they are
        sorted by class and key."""
        self.names = names or {}
        self._in_order = in_order
        self._columns: dict[str, list] = {name: [] for name in SCHEMA.names if name != "label"}
        self._classes: list[str] = []
        self._keys: set[tuple[str, str]] = set()
        self.refused: list[RefusedFile] = []
        self.unused: list[str] = []
        self.files: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._classes)

    def add(self, split: str, class_id: str, name: str, file: str, offset: int, size: int) -> None:
        """Add the image `name` of a class; `file`, `offset` and `size` are fields of `ImageFile`.
        Refuse it if the split already has an image of this name in the class, or if a name is not
        printable."""
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
        """Record that a class has no usable image: its folder is empty or all files are refused."""
        self.unused.append(printable_name(f"{split}/{class_id}"))

    def classes(self) -> set[str]:
        return set(self._classes)

    def has_validation(self) -> bool:
        return VALIDATION in self._columns["split"]

    def hold_out(self, share: float) -> None:
        """Move a share of each class's images, at least one, to the validation split: the images
        whose keys have the lowest hashes. A class with a single image keeps it for training."""
        keys, positions = self._columns["key"], defaultdict(list)
        for position, class_id in enumerate(self._classes):
            positions[class_id].append(position)
        for in_class in positions.values():
            in_class.sort(key=lambda row: hashlib.sha256(os.fsencode(keys[row])).digest())
            count = max(1, round(share * len(in_class))) if len(in_class) > 1 else 0
            for position in in_class[:count]:
                self._columns["split"][position] = VALIDATION

    def build(self, earlier: tuple[str, ...] = ()) -> Listing:
        """Return the listing. `earlier` are class names that keep their order (see
        `number_classes`). FractalError: a class's name is reserved, or two look the same."""
        numbered = number_classes(self.classes() | set(self.names), self.names, earlier)
        label = {class_id: number for number, class_id in enumerate(numbered)}
        columns = {"label": [label[class_id] for class_id in self._classes], **self._columns}
        table = pa.table(columns, schema=SCHEMA)
        keys = [("split", "ascending")]
        if not self._in_order:
            keys += [("label", "ascending"), ("key", "ascending")]
        # `sort_by` is not stable. With the position as the last key it is.
        position = pa.array(range(len(self)), pa.int64())
        ordered = table.append_column("position", position).sort_by(
            [*keys, ("position", "ascending")]
        )
        return Listing(
            images=ordered.select(SCHEMA.names).combine_chunks(),
            class_ids=tuple(numbered),
            class_names=tuple(numbered.values()),
            refused=tuple(self.refused),
            unused=tuple(sorted(self.unused)),
            files=dict(sorted(self.files.items())),
        )


def printable_name(name: str) -> str:
    """Return the name with invalid UTF-8 and control characters escaped, as in `caf\\xe9`."""
    if name.isascii() and name.isprintable():
        return name
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _CONTROL else c
        for c in text
    )


def size_refusal(size: int) -> str | None:
    """Return the reason to refuse an image file of `size` bytes, or None if its size is allowed."""
    if size == 0:
        return "the file is empty"
    if size > LARGEST_IMAGE:
        return f"it has {size:,} bytes, at most {LARGEST_IMAGE:,} are read as an image"
    return None
