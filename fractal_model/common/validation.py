"""Read settings from JSON, and describe what is wrong with the user's settings, on one line."""

import difflib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.safe_text import shorten

Settings = TypeVar("Settings", bound=BaseModel)

SHOWN_PROBLEMS = 20
_LONGEST = 100


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
            text = item["msg"].removeprefix("Value error, ")
            value = item["input"]
            ending = f", found {_short_repr(value)}" if isinstance(value, str | int | float) else ""
            problems.append(f"{key}: {text}{ending}" if key else text)
    if (more := error.error_count() - SHOWN_PROBLEMS) > 0:
        problems.append(f"and {more:,} more problems")
    return "; ".join(problems)


def _short_repr(value: str | int | float) -> str:
    """A value as Python writes it, shortened if it is long."""
    if isinstance(value, int) and abs(value) >= 10**_LONGEST:  # Python may refuse to print it
        return f"an integer of {value.bit_length():,} bits"
    return repr(shorten(value, _LONGEST)) if isinstance(value, str) else repr(value)


def _suggestion(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """Return the last words of the error message for the unknown key at `location`. They name the
    nearest known key of its section, or all known keys if none is near."""
    keys = _keys_at(model, location[:-1])
    near = difflib.get_close_matches(str(location[-1]), keys, n=1)
    if near:
        return f", did you mean {near[0]!r}?"
    return f", known are {', '.join(keys)}" if keys else ""


def _keys_at(annotation: object, location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        arguments: tuple[object, ...] = getattr(annotation, "__args__", ())
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            field = annotation.model_fields.get(str(part))
            annotation = field.annotation if field else None
        elif len(arguments) == 2:  # dict[str, …]
            annotation = arguments[1]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return list(annotation.model_fields)
    return []
