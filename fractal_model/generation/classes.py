"""Classes as people write them: numbers, or names from the model's data set.

Decided here: the command line and the served model read a class in the same way. A word that may
mean two classes is refused; `name:` or `number:` before it says which one is meant.
"""

import csv
import difflib
from collections.abc import Sequence

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.safe_text import shorten
from fractal_model.config.model import UNCONDITIONAL, ModelConfig
from fractal_model.model.fractal import NO_CLASS

_NAME, _NUMBER = "name:", "number:"
_LONGEST_NUMBER = 18  # digits
_MOST_NAMES, _LONGEST_NAME = 10, 40
"""Number of class names in a message, and the number of characters of each."""


def split_classes(text: str) -> list[str]:
    """Split a list such as `207, "a name, with a comma"` at its commas. FractalError: a double
    quote is not closed."""
    try:
        (parts,) = csv.reader([text], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError) as error:
        raise FractalError(
            f"the classes cannot be read ({one_line(error)}): separate them with commas, put a "
            f"name with a comma in double quotes, and the list in single quotes: '\"a,b\",c'"
        ) from error
    return [part.strip() for part in parts or [""]]


def parse_classes(text: str, config: ModelConfig) -> list[int]:
    """Return the class numbers of a list such as `207, golden retriever`. The word `none` stands
    for NO_CLASS. FractalError: a class is unknown or may mean two classes."""
    try:
        return [class_number(part, config) for part in split_classes(text)]
    except FractalError as error:
        for name in config.class_names:
            if "," in name and name.casefold() in text.casefold():
                raise FractalError(f"{error}; for the class {name!r} write '\"{name}\"'") from None
        raise


def class_number(part: str, config: ModelConfig) -> int:
    """Return the number of the class `part`, which is written as a number, a name (with or without
    commas) or `none` (NO_CLASS). FractalError: the class is unknown or may mean two classes."""
    if part == UNCONDITIONAL:
        return NO_CLASS
    names = config.class_names
    named, number = _find_by_name(part, names), _number(part, config.num_classes)
    if not named and part.startswith(_NAME):
        named = _find_by_name(part.removeprefix(_NAME), names)
    elif not named and part.startswith(_NUMBER):
        number = _number(part.removeprefix(_NUMBER), config.num_classes)
    elif part in names and part != str(number):
        number = None  # the name is a numeral with leading zeros, such as 01
    if len(named) > 1:
        numbers = " and ".join(map(str, named))
        raise FractalError(f"class {part!r} is the name of classes {numbers}: give a number")
    if named and number not in (None, named[0]):
        raise FractalError(
            f"class {part!r} is unclear: it is the name of class {named[0]} ({names[named[0]]!r}) "
            f"and the number of class {number} ({names[number]!r}): write {_NAME}{part} or "
            f"{_NUMBER}{part}"
        )
    if named:
        return named[0]
    if number is None:
        raise _unknown_class_error(part, config)
    return number


def _find_by_name(part: str, names: Sequence[str]) -> list[int]:
    """Return the numbers of the classes whose name is `part`. If there are none, upper and lower
    case count as equal. If there are still none, `01` and `1` count as equal."""
    for key in (str, str.casefold, _numeral):
        numbers = [number for number, name in enumerate(names) if key(name) == key(part)]
        if numbers and key(part) is not None:
            return numbers
    return []


def _numeral(text: str) -> int | None:
    is_numeral = text.isascii() and text.isdecimal() and len(text) <= _LONGEST_NUMBER
    return int(text) if is_numeral else None


def _number(part: str, classes: int) -> int | None:
    number = _numeral(part)
    return number if number is not None and number < classes else None


def _unknown_class_error(part: str, config: ModelConfig) -> FractalError:
    names = [name.casefold() for name in config.class_names]
    is_number = part.lstrip("+-").isdecimal()
    near = [] if is_number else difflib.get_close_matches(part.casefold(), names, n=1)
    hint = f", or did you mean {config.class_names[names.index(near[0])]!r}?" if near else ""
    return FractalError(
        f"class {part!r} is unknown: this model knows 0 … {config.num_classes - 1}"
        f"{_names_in_brackets(config)} and {UNCONDITIONAL!r}{hint}"
    )


def _names_in_brackets(config: ModelConfig) -> str:
    """Return the first class names in brackets, or no text if the names are the numbers."""
    names = config.class_names
    if not names or all(_numeral(name) is not None for name in names):
        return ""
    more = ", …" if len(names) > _MOST_NAMES else ""
    shown = (repr(shorten(name, _LONGEST_NAME)) for name in names[:_MOST_NAMES])
    return f" ({', '.join(shown)}{more})"
