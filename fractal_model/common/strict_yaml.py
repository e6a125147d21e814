"""Read YAML strictly, because people write it by hand.

Decided here: a key that occurs twice in one mapping is an error. So is a number that YAML reads in
an unusual way: 022 as 18, or 1:30 as 90. A date stays text; sets and binary data are refused,
because no setting has such a value. Control characters are refused, because no path or name has
them. A file that nests or grows without end is refused before it takes memory.
"""

import re
import unicodedata
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from fractal_model.common.errors import one_line
from fractal_model.common.files import require_regular_file

LARGEST_BYTES = 1 << 20
DEEPEST = 50
"""Largest depth of lists and mappings inside one another; params.yaml has a depth of four."""
MOST_MERGED = 100_000
"""Largest number of keys that all merges (`<<`) of a file add; params.yaml adds a few hundred."""
_TIMESTAMP, _MERGE = "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:merge"
_UNUSED = ("set", "omap", "pairs", "binary")
_UNUSUAL_NUMBER = re.compile(r"[-+]?(0[0-9_]+|[0-9_]+(:[0-9]+)+(\.[0-9_]*)?)")
"""Pattern of a number with a leading zero, which YAML reads as octal, or with colons, which YAML
reads in base 60."""


class NotYAMLError(ValueError):
    """The text is not valid YAML, or this module refuses it. The message is one line."""


def read_yaml(file: Path) -> Any:
    """Return the content of a YAML file. OSError: the file cannot be read. NotYAMLError: it is not
    YAML, or this module refuses it."""
    return parse_yaml(_read_text(file))


def _read_text(file: Path) -> str:
    require_regular_file(file)
    with file.open("rb") as stream:
        content = stream.read(LARGEST_BYTES + 1)
    if len(content) > LARGEST_BYTES:
        raise NotYAMLError(f"it has more than {LARGEST_BYTES:,} bytes: give a settings file")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise NotYAMLError(one_line(error)) from error


def read_key_lines(file: Path) -> dict[tuple[str, ...], int]:
    """Return the line of each key of a YAML file that `read_yaml` accepts, by the key and those of
    the mappings around it. A key that comes from an anchor has the line where it is written."""
    loader = _StrictLoader(_read_text(file))
    lines: dict[tuple[str, ...], int] = {}
    mappings: list[tuple[tuple[str, ...], Any]] = [((), loader.get_single_node())]
    while mappings:
        above, mapping = mappings.pop()
        if isinstance(mapping, yaml.MappingNode):
            loader.flatten_mapping(mapping)
            for key, value in mapping.value:
                lines[*above, key.value] = key.start_mark.line + 1
                mappings.append(((*above, key.value), value))
    return lines


def parse_yaml(text: str) -> Any:
    """Return the content of a YAML text. NotYAMLError: the text is not YAML, or is refused here."""
    try:
        return yaml.load(text, _StrictLoader)
    except yaml.MarkedYAMLError as error:
        raise NotYAMLError(_located_problem(error)) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise NotYAMLError(one_line(error)) from error


def _located_problem(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark
    text = ", ".join(part for part in (error.context, error.problem) if part)
    return f"line {mark.line + 1}, column {mark.column + 1}: {text}" if mark else text


class _StrictLoader(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012  # PyYAML declares it as a dict too
        start: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
        for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    yaml_constructors = {  # noqa: RUF012
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if not (tag or "").endswith(_UNUSED)
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._anchors_above: list[str | None] = []
        self._merged = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        anchor, mark = getattr(event, "anchor", None), event.start_mark
        if isinstance(event, yaml.AliasEvent) and anchor in self._anchors_above:
            raise ComposerError(None, None, f"*{anchor} contains itself: remove it", mark)
        if len(self._anchors_above) > DEEPEST:
            problem = f"more than {DEEPEST} lists and mappings are inside one another: nest fewer"
            raise ComposerError(None, None, problem, mark)
        self._anchors_above.append(anchor)
        node = super().compose_node(parent, index)
        self._anchors_above.pop()
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if (identity := (key.tag, key.value)) in lines:
                raise NotYAMLError(
                    f"the key {key.value[:40]!r} occurs twice, in line {lines[identity]} and in "
                    f"line {line}: remove one of them"
                )
            lines[identity] = line
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Replace each merge key `<<` by the keys of the mappings that it merges."""
        for part in _merged_mappings(node):
            self.flatten_mapping(part)
            self._merged += len(part.value)
            if self._merged > MOST_MERGED:
                problem = f"all << together add more than {MOST_MERGED:,} keys: merge fewer"
                raise ConstructorError(None, None, problem, node.start_mark)
        super().flatten_mapping(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        is_plain = isinstance(node, yaml.ScalarNode) and node.style is None
        if is_plain and _UNUSUAL_NUMBER.fullmatch(node.value):
            problem = (
                f"{node.value[:40]!r} is ambiguous: write a decimal number, or a text in quotes"
            )
            raise ConstructorError(None, None, problem, node.start_mark)
        try:
            value = super().construct_object(node, deep=deep)
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            kind = node.tag.rpartition(":")[2]
            problem = f"{str(node.value)[:40]!r} cannot be read as {kind}: correct it"
            raise ConstructorError(None, None, problem, node.start_mark) from error
        if isinstance(value, str) and any(unicodedata.category(c) in ("Cc", "Cs") for c in value):
            problem = f"{value[:40]!r} has a control character, which no setting has: remove it"
            raise ConstructorError(None, None, problem, node.start_mark)
        return value


def _merged_mappings(node: yaml.MappingNode) -> list[yaml.MappingNode]:
    values = [value for key, value in node.value if key.tag == _MERGE]
    lists = (v.value if isinstance(v, yaml.SequenceNode) else [v] for v in values)
    return [part for parts in lists for part in parts if isinstance(part, yaml.MappingNode)]
