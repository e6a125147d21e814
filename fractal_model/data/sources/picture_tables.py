"""List images by a table, CSV or parquet, with a picture's path and its class in every row.

Decided here: paths are relative to the table and stay below its folder. A row that cannot be used
is refused, as a file in a class folder is. A row of another split, such as test, is ignored.
"""

import csv
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.files import require_regular_file
from fractal_model.common.litter import is_litter
from fractal_model.data.sources.folders import add_file, split_folders
from fractal_model.data.sources.listing import SPLIT_NAMES, TRAIN, ListingBuilder, Progress
from fractal_model.data.sources.places import TABLE_ENDINGS

PATH_COLUMNS = ("path", "file", "file_name", "filename", "image")
LABEL_COLUMNS = ("label", "class")
_OTHER_SPLITS = ("test", "testing", "dev")
_SPLIT_COLUMN = "split"
_REPORTED_ROWS = 1000
_LONGEST_HEADER = 2**16  # characters


class _Columns(NamedTuple):
    """Names of a table's columns."""

    path: str
    label: str
    split: str | None


def find_tables(root: Path, label: str | None) -> dict[str, Path]:
    """Return the tables of pictures by split: files in `root`, or else in the folders of its
    splits, that have columns for paths and classes. A name such as validation.csv says the split;
    other names mean training images. `label` is the name of the classes' column, if the user gave
    one. FractalError: two tables are of the same split."""
    tables: dict[str, Path] = {}
    named = [(_named_split(file), file) for file in _tables_in(root, label)]
    if not named:
        folders = split_folders(root).items()
        named = [(split, file) for split, folder in folders for file in _tables_in(folder, label)]
    for split, file in named:
        if split in tables:
            raise FractalError(
                f"{root} has several tables of pictures ({tables[split].name}, {file.name}): give "
                f"the one to read, such as {file}"
            )
        if split is not None:
            tables[split] = file
    return tables


def list_tables(
    root: Path, tables: dict[str, Path], label: str | None, progress: Progress
) -> ListingBuilder:
    """List the images in `tables`, which are below `root`. A table's split counts if it has no
    column for it. FractalError: a table cannot be read, lacks a column or has an unknown split."""
    builder = ListingBuilder()
    for named, table in tables.items():
        for number, (path, class_id, split) in enumerate(_iterate_rows(table, label), start=1):
            in_split = _split_of_row(table, number, split) if split else named
            if in_split is not None:
                _add_row(builder, root, table, in_split, path, class_id)
            if number % _REPORTED_ROWS == 0:
                progress(len(builder))
    return builder


def require_one_label(names: list[str], place: object, kind: str) -> None:
    """Raise FractalError if a place has several columns or features `names` for classes."""
    if len(names) > 1:
        raise FractalError(
            f"{place} has {len(names)} label {kind} ({', '.join(names)}), expected one: choose "
            f"it, for example {names[0]}",
            setting="label",
        )


def _tables_in(folder: Path, label: str | None) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if _is_table(file, label)]


def _is_table(file: Path, label: str | None) -> bool:
    if file.suffix.lower() not in TABLE_ENDINGS or is_litter(file.name) or not file.is_file():
        return False
    with suppress(FractalError):  # Another file, for example a table of captions.
        return bool(_find_columns(file, _header(file), label))
    return False


def _named_split(table: Path) -> str | None:
    """Return the split that a table's name stands for; None for another split, such as test."""
    word = re.split("[-_.]", table.name, maxsplit=1)[0].casefold()
    return None if word in _OTHER_SPLITS else SPLIT_NAMES.get(word, TRAIN)


def _split_of_row(table: Path, number: int, split: str) -> str | None:
    name = split.strip().casefold()
    if name not in SPLIT_NAMES and name not in _OTHER_SPLITS:
        raise FractalError(
            f"row {number} of {table} has the split {split!r}, expected train, validation or test"
        )
    return SPLIT_NAMES.get(name)


def _add_row(
    builder: ListingBuilder, root: Path, table: Path, split: str, path: str, class_id: str
) -> None:
    relative = PurePosixPath(path)
    if not path or not class_id:
        builder.refuse(split, path or table.name, "its row has no path or no class")
    elif relative.is_absolute() or ".." in relative.parts:
        builder.refuse(split, f"{class_id}/{path}", "its path leaves the folder of the table")
    else:
        file = table.parent / relative
        name = file.relative_to(root).as_posix()
        add_file(builder, root, split, class_id, name, file)


def _iterate_rows(table: Path, label: str | None) -> Iterator[tuple[str, str, str]]:
    """Yield the path, the class and the split of each row; a missing value is an empty text."""
    columns = _find_columns(table, _header(table), label)
    names = [name for name in columns if name is not None]
    try:
        if table.suffix.lower() == ".csv":
            with table.open(newline="", encoding="utf-8-sig") as opened:
                reader = csv.reader(opened, delimiter=_delimiter(table), skipinitialspace=True)
                header = [name.strip() for name in next(reader)]
                places = [header.index(name) for name in names]
                for row in filter(None, reader):
                    yield _fill([row[place] if place < len(row) else "" for place in places])
        else:
            content = pq.read_table(table, columns=names)
            for values in zip(*(content[name].to_pylist() for name in names), strict=True):
                yield _fill(["" if value is None else str(value) for value in values])
    except (csv.Error, pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable_error(table, error) from error


def _fill(values: list[str]) -> tuple[str, str, str]:
    path, label, *split = values
    return path, label, split[0] if split else ""


def _find_columns(table: Path, header: list[str], label: str | None) -> _Columns:
    """Return the columns of a table. FractalError: one is missing, or several could be the
    label."""
    paths, labels = find_names(header, PATH_COLUMNS), find_names(header, LABEL_COLUMNS)
    if label is not None:
        labels = [name for name in header if name == label]
    if not paths or not labels:
        wanted = label or "label (or class)"
        raise FractalError(
            f"{table} has the columns {', '.join(header) or 'of no name'}, expected path (or "
            f"{', '.join(PATH_COLUMNS[1:])}) and {wanted}"
        )
    require_one_label(labels, table, "columns")
    return _Columns(paths[0], labels[0], next(iter(find_names(header, (_SPLIT_COLUMN,))), None))


def find_names(names: Iterable[str], usual: tuple[str, ...]) -> list[str]:
    """Return those of `names` that are usual ones, in the order of `usual`; capitals do not
    matter."""
    return [name for word in usual for name in names if name.casefold() == word]


def _header(table: Path) -> list[str]:
    """Return the names of a table's columns of text or whole numbers; none for a parquet file with
    the images themselves."""
    try:
        require_regular_file(table)
        if table.suffix.lower() == ".csv":
            with table.open(newline="", encoding="utf-8-sig") as opened:
                reader = csv.reader(opened, delimiter=_delimiter(table), skipinitialspace=True)
                return [name.strip() for name in next(reader, [])]
        fields = list(pq.read_schema(table))
        if any(_has_bytes(field.type) for field in fields):
            return []
        return [field.name for field in fields if _is_text_or_number(field.type)]
    except (csv.Error, pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable_error(table, error) from error


def _delimiter(table: Path) -> str:
    """Return the character between the columns of a CSV: a comma, semicolon or tab."""
    with table.open(encoding="utf-8-sig") as opened:
        return max(",;\t", key=opened.readline(_LONGEST_HEADER).count)


def _is_text_or_number(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)


def _has_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def _unreadable_error(table: Path, error: Exception) -> FractalError:
    return FractalError(
        f"the table {table} cannot be read ({one_line(error)}): save it as CSV in UTF-8 with "
        f"commas, or as parquet"
    )
