"""Read settings from JSON, and describe what is wrong with the user's settings, on one line."""

import difflib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic_core import from_json

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.safe_text import shorten

Settings = TypeVar("Settings", bound=BaseModel)

SHOWN_PROBLEMS = 20
_LONGEST = 100
_EXPECTED = {
    "int_type": "expected an integer",
    "int_from_float": "expected an integer",
    "int_parsing": "expected an integer",
    "int_parsing_size": "expected an integer",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "string_type": "expected a text",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "path_type": "expected a path",
    "tuple_type": "expected a list",
    "list_type": "expected a list",
    "dict_type": "expected keys with values",
    "model_type": "expected keys with values",
}
"""For values of a wrong type, words that people who write YAML know, by pydantic's type."""


def read_json(file: Path, model: type[Settings], content: str) -> Settings:
    """Read settings of class `model` from a JSON file. `content` is the name of what the file
    should hold, for the error message. FractalError: the file is damaged or a setting is wrong."""
    try:
        return model.model_validate(from_json(file.read_bytes()))
    except ValidationError as error:  # It is a ValueError, which from_json raises.
        reason = describe(error, model)
    except ValueError as error:
        reason = f"damaged or truncated, {one_line(error)}"
    raise FractalError(f"{file} is not {content}: {reason}")


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """Describe on one line at most `SHOWN_PROBLEMS` of the problems in a pydantic error. For an
    unknown key, suggest the nearest key of `model`."""
    problems = []
    for item in error.errors()[:SHOWN_PROBLEMS]:
        key = ".".join(shorten(str(part), _LONGEST) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            problems.append(f"unknown key {key!r}{_suggestion(model, item['loc'])}")
        elif item["type"] == "missing":
            problems.append(f"key {key!r} is missing")
        else:
            kind, value = item["type"], item["input"]
            text = _EXPECTED.get(kind, item["msg"].removeprefix("Value error, "))
            is_shown = kind in _EXPECTED or isinstance(value, str | int | float)
            ending = f", found {_short_repr(value)}" if is_shown else ""
            problems.append(f"{key}: {text}{ending}" if key else f"{text}{ending}")
    if (more := error.error_count() - SHOWN_PROBLEMS) > 0:
        problems.append(f"and {more:,} more problems")
    return "; ".join(problems)


def _short_repr(value: object) -> str:
    """A text or number as Python writes it, shortened if it is long; anything else in words."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, int) and abs(value) >= 10**_LONGEST:  # Python may refuse to print it
        return f"an integer of {value.bit_length():,} bits"
    if isinstance(value, str | int | float):
        return repr(shorten(value, _LONGEST) if isinstance(value, str) else value)
    words: dict[type, str] = {list: "a list", tuple: "a list", dict: "keys with values"}
    return words.get(type(value), f"a {type(value).__name__}")


def _suggestion(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """Return the last words of the error message for the unknown key at `location`. They name the
    nearest known key of its section, or all known keys if none is near."""
    section = annotation_at(model, location[:-1])
    is_model = isinstance(section, type) and issubclass(section, BaseModel)
    return name_nearest(str(location[-1]), keys_of(section) if is_model else ())


def keys_of(model: type[BaseModel]) -> dict[str, str]:
    """Return the names of the fields of a settings class by the keys that a file has for them."""
    keys = {}
    for name, field in model.model_fields.items():
        alias = field.validation_alias
        keys[str(alias.choices[0]) if isinstance(alias, AliasChoices) else name] = name
    return keys


def name_nearest(key: str, known: Collection[str]) -> str:
    """Return the last words of an error message about an unknown key: the nearest of the `known`
    keys, or all of them if none is near."""
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        return f", did you mean {near[0]!r}?"
    return f", known are {', '.join(known)}" if known else ""


def annotation_at(annotation: Any, location: Sequence[int | str]) -> Any:
    """Return the type of the setting at `location` within settings of the type `annotation`; None
    if it is not known."""
    for part in location:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            field = annotation.model_fields.get(str(part))
            annotation = field.annotation if field else None
        else:
            annotation = get_args(annotation)[1] if get_origin(annotation) is dict else None
    return annotation
