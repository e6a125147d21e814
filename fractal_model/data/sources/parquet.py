"""List labelled images in parquet files with the layout of the Hugging Face hub."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.files import require_regular_file
from fractal_model.common.litter import is_litter
from fractal_model.data.sources.imagenet import WNID, class_refusal
from fractal_model.data.sources.listing import (
    LARGEST_IMAGE,
    SPLIT_NAMES,
    ListingBuilder,
    Progress,
    size_refusal,
)
from fractal_model.data.sources.reading import image_batches, open_parquet

_LARGEST_PAGE = 512 * 2**20
"""Largest allowed page of a parquet column, in bytes. A page is decoded as a whole, with its packed
and its unpacked bytes in memory at the same time."""
_PAGE_ROWS = 1024
"""Number of rows after which Arrow's writers check the size of a page. A page of fewer rows can
therefore have any size."""
_BYTES = "image.bytes"
_TAIL = 8  # bytes at a file's end: the footer's length and the magic number


class _Row(NamedTuple):
    group: int
    row: int
    label: int | None
    path: str | None
    """Original file name of the image, if the file has it."""


def parquet_files(root: Path) -> dict[str, list[Path]]:
    """Return the parquet files of each split, sorted by name. Other splits, such as test, are
    ignored. The files are in `root` or `root/data`, or else in the folder of a Hugging Face
    configuration, as in `default/train/0000.parquet`. FractalError: there are several such
    folders."""
    if files := _files_by_split(root, root / "data"):
        return files
    folders = (f for f in sorted(root.iterdir()) if f.is_dir() and not is_litter(f.name))
    configurations = {
        folder.name: files for folder in folders if (files := _files_by_split(folder))
    }
    if len(configurations) > 1:
        raise FractalError(
            f"{root} has parquet files of {len(configurations)} configurations "
            f"({', '.join(configurations)}): give the folder of one of "
            f"them, such as {root / min(configurations)}"
        )
    return next(iter(configurations.values()), {})


def _files_by_split(*folders: Path) -> dict[str, list[Path]]:
    """Return for each split the files such as `train-*.parquet` in `folders`, and numbered files in
    their subfolders `train/`, `validation/` etc. Other files in these subfolders, such as
    metadata.parquet, have no images and are left out."""
    files: dict[str, list[Path]] = {}
    for folder in folders:
        for place in (folder, *(folder / name for name in SPLIT_NAMES)):
            for file in sorted(place.glob("*.parquet")):
                word = re.split("[-_.]", file.name, maxsplit=1)[0]
                is_part = place != folder and (word.isdecimal() or word == "part")
                if split := SPLIT_NAMES.get(place.name if is_part else word):
                    files.setdefault(split, []).append(file)
    return files


def list_parquet(root: Path, progress: Progress, *, imagenet: bool) -> ListingBuilder:
    """List the image in every row, in the order of the files.

    A class id is the label in four digits. With `imagenet`, an image is refused if its file name
    begins with another class than most file names of the same label. Raises FractalError for a file
    that cannot be read, needs too much memory, or lacks the column `label` or `image` (with bytes).
    """
    builder = ListingBuilder(in_order=True)
    files = parquet_files(root)
    usual = _usual_classes([file for split in files.values() for file in split]) if imagenet else {}
    for split, in_split in files.items():
        for file in in_split:
            opened = _open(file)
            builder.names |= _class_names(opened)
            relative = file.relative_to(root).as_posix()
            builder.files[relative] = _checksum(file)
            too_large = _find_too_large(file, opened)
            for row in _iterate_rows(file, opened):
                name = f"{relative}:{row.group}:{row.row}"
                name += f":{row.path}" if row.path else ""
                reason = too_large.get((row.group, row.row)) or _refusal(row, usual)
                if reason:
                    builder.refuse(split, name, reason)
                else:
                    class_id = f"{row.label:04d}"
                    builder.add(split, class_id, name, relative, row.group, row.row)
            progress(len(builder))
    return builder


def _refusal(row: _Row, usual: dict[int, str]) -> str | None:
    if row.label is None or row.label < 0:
        return f"its label is {row.label}"
    if row.path and row.label in usual:
        return class_refusal(PurePosixPath(row.path).name, usual[row.label])
    return None


def _usual_classes(files: list[Path]) -> dict[int, str]:
    """Return for each label the most frequent WordNet id at the start of its images' file names. A
    label is left out if none of these names begins with a WordNet id."""
    classes: dict[int, Counter[str]] = defaultdict(Counter)
    for file in files:
        for row in _iterate_rows(file, _open(file)):
            if row.path and row.label is not None:
                match = WNID.match(PurePosixPath(row.path).name)
                classes[row.label].update([match.group(0)] if match else [])
    return {label: counts.most_common(1)[0][0] for label, counts in classes.items() if counts}


def _open(file: Path) -> pq.ParquetFile:
    try:
        require_regular_file(file)
        opened = open_parquet(file)
        fields = {field.name: field.type for field in opened.schema_arrow}
    except (pa.ArrowException, OSError) as error:
        raise FractalError(
            f"{file} is not a complete parquet file ({one_line(error)}): fetch it again"
        ) from error
    struct, label = (fields.get(name, pa.null()) for name in ("image", "label"))
    inner = {f.name: f.type for f in struct} if pa.types.is_struct(struct) else {}
    kind = inner.get("bytes", pa.null())
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if not is_bytes or not pa.types.is_integer(label):
        columns = ", ".join(f"{name} ({kind})" for name, kind in fields.items())
        raise FractalError(
            f"{file} has the columns {' '.join(columns.split())}, expected image (with bytes) and "
            f"label (an integer), as ImageNet's on the Hugging Face hub"
        )
    return opened


def _iterate_rows(file: Path, opened: pq.ParquetFile) -> Iterator[_Row]:
    """Yield a `_Row` for every row of the file, without reading the images."""
    has_path = "path" in {f.name for f in opened.schema_arrow.field("image").type}
    columns = ["label", *(["image.path"] if has_path else [])]
    for group in range(opened.num_row_groups):
        try:
            table = opened.read_row_group(group, columns=columns).flatten()
            labels = table["label"].to_pylist()
            paths = table["image.path"].to_pylist() if has_path else [None] * len(labels)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _damaged_error(file, group, error) from error
        for row, (label, path) in enumerate(zip(labels, paths, strict=True)):
            yield _Row(group, row, label, path)


def _checksum(file: Path) -> str:
    """Return the size of the file and the SHA-256 of its footer, which describes the row groups."""
    with file.open("rb") as opened:
        size = opened.seek(-_TAIL, 2) + _TAIL
        length = int.from_bytes(opened.read(4), "little")
        opened.seek(-_TAIL - length, 2)
        return f"{size} bytes, footer {hashlib.sha256(opened.read(length)).hexdigest()}"


def _find_too_large(file: Path, opened: pq.ParquetFile) -> dict[tuple[int, int], str | None]:
    """Return the reasons to refuse the images that are too large, by (row group, row). Images are
    read only in row groups that are large enough to have one. FractalError: a page of `image.bytes`
    may need too much memory to decode."""
    refusals = {}
    for group in range(opened.num_row_groups):
        part = opened.metadata.row_group(group)
        columns = (part.column(number) for number in range(part.num_columns))
        images = sum(c.total_uncompressed_size for c in columns if c.path_in_schema == _BYTES)
        if images <= LARGEST_IMAGE:
            continue
        page = images * min(1.0, _PAGE_ROWS / part.num_rows)
        if page > _LARGEST_PAGE:
            raise FractalError(
                f"row group {group} of {file} has {images / 2**20:,.0f} MiB in {part.num_rows:,} "
                f"images, which takes too much memory to read: expected at most "
                f"{_LARGEST_PAGE // 2**20} MiB in {_PAGE_ROWS:,}; write the file again with "
                f"smaller row groups, such as row_group_size=100"
            )
        try:
            for row, image in enumerate(image_batches(opened, group)):
                if (size := pc.binary_length(image)[0].as_py() or 0) > LARGEST_IMAGE:
                    refusals[group, row] = size_refusal(size)
        except (pa.ArrowException, OSError) as error:
            raise _damaged_error(file, group, error) from error
    return refusals


def _damaged_error(file: Path, group: int, error: Exception) -> FractalError:
    return FractalError(
        f"row group {group} of {file} is damaged ({one_line(error)}): fetch it again"
    )


def _class_names(opened: pq.ParquetFile) -> dict[str, str]:
    """Return the class names by class id, as Hugging Face `datasets` wrote them to the schema;
    empty if the schema has none."""
    try:
        metadata = json.loads((opened.schema_arrow.metadata or {})[b"huggingface"])
        names = metadata["info"]["features"]["label"]["names"]
        return {f"{number:04d}": str(name) for number, name in enumerate(names)}
    except (KeyError, TypeError, ValueError):
        return {}
