"""Classes as people ask for them: numbers, or names of the model's data set."""

import difflib
from collections.abc import Sequence

from fractal_model.common.errors import FractalError
from fractal_model.config.model import ModelConfig
from fractal_model.model.fractal import NO_CLASS

UNCONDITIONAL = "none"


def parse_classes(text: str, config: ModelConfig) -> list[int]:
    """`207, golden retriever` to class numbers; `none` is unconditional (NO_CLASS).

    FractalError names what is unknown, and the allowed range or the nearest name.
    """
    return [class_number(part.strip(), config) for part in text.split(",")]


def _matches(name: str, names: Sequence[str]) -> list[int]:
    return [number for number, known in enumerate(names) if known == name]


def class_number(part: str, config: ModelConfig) -> int:
    """One class, as `parse_classes` takes several; its name may have commas."""
    if part == UNCONDITIONAL:
        return NO_CLASS
    names = [name.casefold() for name in config.class_names]
    # Names first: those of digits are numerals, and equal their numbers.
    found = _matches(part, config.class_names) or _matches(part.casefold(), names)
    if len(found) == 1:
        return found[0]
    if found:
        numbers = " and ".join(map(str, found))
        raise FractalError(f"class {part!r} is the name of classes {numbers}: give the number")
    # Python refuses to read a number of thousands of digits.
    is_short = part.isascii() and part.isdecimal() and len(part) <= 18
    if is_short and int(part) < config.num_classes:
        return int(part)
    is_number = part.lstrip("+-").isdecimal()
    near = [] if is_number else difflib.get_close_matches(part.casefold(), names, n=1)
    hint = f", or did you mean {config.class_names[names.index(near[0])]!r}?" if near else ""
    raise FractalError(
        f"class {part!r} is unknown: this model knows 0 … {config.num_classes - 1} and "
        f"{UNCONDITIONAL!r}{hint}"
    )
