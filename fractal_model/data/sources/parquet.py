"""ImageNet as parquet files, in the layout of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fractal_model.data.sources.listing import TRAIN, VALIDATION, ListingBuilder
from fractal_model.errors import FractalError, one_line

_PREFIXES = {"train": TRAIN, "validation": VALIDATION, "val": VALIDATION}

Progress = Callable[[int], None]


def parquet_files(root: Path) -> dict[str, list[Path]]:
    """By split, in the order of their names; other splits, such as test, are not looked at."""
    files: dict[str, list[Path]] = {}
    for folder in (root, root / "data"):
        for file in sorted(folder.glob("*.parquet")):
            split = _PREFIXES.get(file.name.split("-")[0].removesuffix(".parquet"))
            if split:
                files.setdefault(split, []).append(file)
    return files


def list_parquet(root: Path, progress: Progress) -> tuple[ListingBuilder, dict[str, str]]:
    """Every row, in the files' order, and the classes' names by their ids.

    Ids are the labels, with leading zeros so that they sort as numbers. Raises FractalError for a
    file that cannot be read or has not the columns `image` (bytes, path) and `label`.
    """
    builder, names = ListingBuilder(), {}
    for split, files in parquet_files(root).items():
        for file in files:
            opened = _open(file)
            names |= _class_names(opened)
            relative = file.relative_to(root).as_posix()
            for group, row, label, path in _rows(file, opened):
                key = path or f"{file.name}:{group}:{row}"
                if label is None or label < 0:
                    builder.refuse(split, key, f"its label is {label}")
                else:
                    builder.add(split, f"{label:04d}", key, relative, group, row)
            progress(len(builder))
    return builder, names


def _open(file: Path) -> pq.ParquetFile:
    try:
        opened = pq.ParquetFile(file)
        fields = {field.name: field.type for field in opened.schema_arrow}
        struct = fields.get("image")
        inner = (
            {f.name for f in struct} if struct is not None and pa.types.is_struct(struct) else {}
        )
    except (pa.ArrowException, OSError) as error:
        raise FractalError(
            f"{file} is no whole parquet file ({one_line(error)}): fetch it again"
        ) from error
    if "bytes" not in inner or "label" not in fields:
        raise FractalError(
            f"{file} has the columns {', '.join(fields)}, expected image (with bytes) and label, "
            f"as ImageNet's on the Hugging Face hub"
        )
    return opened


def _rows(file: Path, opened: pq.ParquetFile) -> Iterator[tuple[int, int, int | None, str | None]]:
    """(row group, row, label, path) of every row, without reading images."""
    has_path = "path" in {f.name for f in opened.schema_arrow.field("image").type}
    columns = ["label", *(["image.path"] if has_path else [])]
    for group in range(opened.num_row_groups):
        try:
            table = opened.read_row_group(group, columns=columns).flatten()
        except (pa.ArrowException, OSError) as error:
            raise FractalError(
                f"row group {group} of {file} is damaged ({one_line(error)}): fetch it again"
            ) from error
        labels = table["label"].to_pylist()
        paths = table["image.path"].to_pylist() if has_path else [None] * len(labels)
        for row, (label, path) in enumerate(zip(labels, paths, strict=True)):
            yield group, row, label, path


def _class_names(opened: pq.ParquetFile) -> dict[str, str]:
    """From what `datasets` notes in the schema, where it did."""
    try:
        notes = json.loads((opened.schema_arrow.metadata or {})[b"huggingface"])
        names = notes["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return {}
    return {f"{number:04d}": name for number, name in enumerate(names)}
