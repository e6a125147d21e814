"""Write the entries of a new size: into params.yaml, or as a YAML text of their own.

Decided here: params.yaml is not written anew. The entries become lines behind the last entry of
each section, in columns that fit the table there, and every other byte stays: comments, anchors,
alignment and the ends of lines.
"""

import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from fractal_model.common.errors import FractalError
from fractal_model.common.files import atomic_file
from fractal_model.common.strict_yaml import parse_yaml
from fractal_model.common.validation import describe
from fractal_model.config.params import Params
from fractal_model.sizing.choices import Entry, Proposal

_ROWS = ("models", "sampling")
"""Sections whose entries are one line each."""
_INDENT = "  "


class _Section(NamedTuple):
    last_line: int
    """Number of the last line with content, counted from 0."""
    last_row: str
    """The line on which the last entry begins."""
    indent: str


def add_entries(file: Path, name: str, proposal: Proposal) -> None:
    """Add the size `name` to the settings in `file`. FractalError: a section is not written as a
    block with one entry below the other, or its new content is not valid."""
    file = file.resolve()
    before = file.read_bytes().decode()
    after = insert_entries(before, name, proposal)
    content = parse_yaml(after)
    try:
        Params.model_validate(content)
    except ValidationError as error:
        raise FractalError(
            f"the new entries do not fit {file}: {describe(error, Params)}"
        ) from error
    assert _without(content, name, proposal) == parse_yaml(before), "another setting changed"
    with atomic_file(file, unique=True) as partial:
        partial.write_bytes(after.encode())
        shutil.copymode(file, partial)


def insert_entries(text: str, name: str, proposal: Proposal) -> str:
    """Return the settings in `text` with the entries of the size `name` added. FractalError: a
    section is not written as a block with one entry below the other."""
    end = "\r\n" if "\r\n" in text else "\n"
    lines = text.splitlines(keepends=True)
    sections = _find_sections(text)
    for section, entry in proposal.sections.items():
        if section not in sections:
            raise FractalError(
                f"the section {section} is not a block with one entry below the other, so no entry "
                f"can be added to it: write the entries to a file of their own",
                setting="out",
            )
        place = sections[section]
        new = _format(section, name, entry, place.indent, place.last_row)
        lines[place.last_line] = lines[place.last_line].rstrip("\r\n") + end
        lines[place.last_line] += "".join(line + end for line in new)
    return "".join(lines)


def entries_text(name: str, proposal: Proposal) -> str:
    """Return the entries of the size `name` as a YAML text with the four sections."""
    blocks = (
        f"{section}:\n" + "\n".join(_format(section, name, entry, _INDENT, "")) + "\n"
        for section, entry in proposal.sections.items()
    )
    return "\n".join(blocks)


def _find_sections(text: str) -> dict[str, _Section]:
    """Return the sections that are blocks with at least one entry, by name."""
    lines = text.splitlines()
    found: dict[str, _Section] = {}
    section, depth, is_key, last_line = "", 0, True, 0
    events: Iterator[Any] = yaml.parse(text, yaml.SafeLoader)
    for event in events:
        start, end, value = event.start_mark, event.end_mark, getattr(event, "value", None)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth == 2 and not event.flow_style:
                first_line = start.line
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
            if end.index > start.index:  # a bracket; a block has no end
                last_line = end.line
            elif depth == 1:
                found[section] = _describe(lines, first_line, last_line)
            is_key = depth == 1 or is_key
        elif isinstance(event, yaml.NodeEvent):
            last_line = end.line - (end.column == 0)
            if depth == 1:
                section, is_key = (str(value), False) if is_key else (section, True)
    return found


def _describe(lines: list[str], first_line: int, last_line: int) -> _Section:
    first = lines[first_line]
    indent = first[: len(first) - len(first.lstrip())]
    rows = [line for line in lines[first_line : last_line + 1] if _begins_at(line, len(indent))]
    return _Section(last_line, rows[-1], indent)


def _begins_at(line: str, column: int) -> bool:
    return line[:column].isspace() and line[column : column + 1].strip(" #") != ""


def _format(section: str, name: str, entry: Entry, indent: str, row: str) -> list[str]:
    """The lines of an entry. `row`: a line of the section whose columns a new row follows."""
    start = f"{indent}{_inline(name)}:"
    if section not in _ROWS:
        return [start, *(_line(key, *choice, indent) for key, choice in entry.items())]
    start = start.ljust(row.find("{") if "{" in row else 0)
    text = start if start.endswith(" ") else f"{start} "
    for number, (key, choice) in enumerate(entry.items()):
        text += ", " if number else "{"
        column = re.search(rf"(?<=[{{ ]){key}:", row)
        text = text.ljust(column.start() if column else 0) + f"{key}: {_inline(choice.value)}"
    return [text + "}"]


def _line(key: str, value: Any, reason: str, indent: str) -> str:
    comment = f" # {reason}" if reason else ""
    return f"{indent}{_INDENT}{key}: {_inline(value)}{comment}"


def _inline(value: Any) -> str:
    """A value in YAML, on one line."""
    return yaml.safe_dump([value], default_flow_style=True, width=math.inf, sort_keys=False)[1:-2]


def _without(content: Any, name: str, proposal: Proposal) -> Any:
    entries = {section: dict(content[section]) for section in proposal.sections}
    for entry in entries.values():
        del entry[name]
    return content | entries
