"""Texts such as `training.digits.epochs=5`, each of which replaces one setting of a params.yaml.

Decided here: the value is read as YAML, and the result is checked like a file that says so from the
start. Rows of the file may share an anchor; a text changes only the row that it names.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from fractal_model.common.errors import FractalError
from fractal_model.common.safe_text import LONGEST_NAME, shorten
from fractal_model.common.strict_yaml import DEEPEST, NotYAMLError, parse_yaml
from fractal_model.common.validation import annotation_at, name_nearest


@dataclass(frozen=True)
class Override:
    """A new value of one setting. `keys` lead to the setting, beginning with its section."""

    text: str
    keys: tuple[str, ...]
    value: Any

    def __str__(self) -> str:
        return shorten(self.text, LONGEST_NAME)


def parse_override(text: str) -> Override:
    """Read a text `KEY=VALUE`, in which dots separate the keys. FractalError: it has no key, or its
    value is not YAML."""
    key, is_given, value = text.partition("=")
    keys = tuple(key.strip().split("."))
    if not is_given or not all(keys) or len(keys) > DEEPEST:
        raise FractalError(
            f"{shorten(text, LONGEST_NAME)!r} sets nothing: give a key and a value, "
            f"such as training.digits.epochs=5",
            setting="set",
        )
    try:
        return Override(text, keys, parse_yaml(value))
    except NotYAMLError as error:
        problem = str(error).removeprefix("line 1, ")
        raise FractalError(f"{shorten(text, LONGEST_NAME)}: {problem}", setting="set") from error


def apply_overrides(content: Any, overrides: Iterable[Override], model: type[BaseModel]) -> Any:
    """Return `content`, settings for `model` as they were read from YAML, with the values of the
    overrides. The last one wins. FractalError: a key names a row that `content` does not have."""
    if not isinstance(content, dict):
        return content
    changed = dict(content)
    for override in overrides:
        section = changed
        for depth, key in enumerate(override.keys[:-1]):
            if key not in section:
                _require_row(override.keys[: depth + 1], section, model)
            inner = section.get(key)
            # Other rows may share the same object, because they name its anchor.
            section[key] = dict(inner) if isinstance(inner, dict) else {}
            section = section[key]
        section[override.keys[-1]] = override.value
    return changed


def _require_row(keys: tuple[str, ...], rows: dict[str, Any], model: type[BaseModel]) -> None:
    """Raise FractalError if `keys` name a new row of a table, and such a row needs several
    settings. One setting does not suffice then, so the name is misspelt."""
    table = annotation_at(model, keys[:-1])
    row = get_args(table)[1] if get_origin(table) is dict else None
    if row is not None and any(field.is_required() for field in row.model_fields.values()):
        unknown = shorten(".".join(keys), LONGEST_NAME)
        raise FractalError(f"unknown key {unknown!r}{name_nearest(keys[-1], rows)}")
