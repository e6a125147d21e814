"""Number the classes of a source, and check their names.

Decided here: a source that is registered for the first time has its classes in the order of their
ids as text, and ids that are numerals first, by number, so that the ids 0 … n - 1 are the labels.
When it is registered again, its classes keep their numbers and new classes get the next ones.
"""

import unicodedata
from collections.abc import Iterable

from fractal_model.common.errors import FractalError
from fractal_model.config.model import UNCONDITIONAL


def number_classes(
    ids: Iterable[str], names: dict[str, str], earlier: tuple[str, ...] = ()
) -> dict[str, str]:
    """Return the class names by class id, in the order of the labels. `names` has names by id.
    `earlier` are the class names of an earlier registration, in order; those without an id now are
    left out. FractalError: a name is reserved, or two names look the same."""
    in_order = sorted(ids, key=_sort_key)
    class_names = unique_names(in_order, names)
    _require_no_reserved_name(class_names)
    _require_different_names(class_names)
    place = {name: number for number, name in enumerate(earlier)}
    numbered = zip(in_order, class_names, strict=True)
    return dict(sorted(numbered, key=lambda item: place.get(item[1], len(place))))


def _sort_key(class_id: str) -> tuple[bool, int, str]:
    """Return a key that sorts classes: numerals first, by number, then other ids."""
    is_numeral = class_id.isascii() and class_id.isdecimal()
    return not is_numeral, int(class_id) if is_numeral else 0, class_id


def unique_names(ids: list[str], names: dict[str, str]) -> tuple[str, ...]:
    """Return a name for each class in `ids`: the first of the comma-separated names in `names`, or
    the id if there is none. Where several classes would have the same name, each gets its id
    added."""
    first = [names.get(class_id, "").split(",")[0].strip() or class_id for class_id in ids]
    return tuple(
        f"{name} ({class_id})" if first.count(name) > 1 else name
        for class_id, name in zip(ids, first, strict=True)
    )


def _require_no_reserved_name(class_names: tuple[str, ...]) -> None:
    for name in class_names:
        if name.strip().casefold() == UNCONDITIONAL:
            raise FractalError(
                f"a class is called {name!r}, the word that asks for a sample without a class: "
                f"rename it, for example to 'nothing'"
            )


def _require_different_names(class_names: tuple[str, ...]) -> None:
    """Raise FractalError if two names look the same, because they differ only in spaces at their
    ends or in how Unicode writes a letter with an accent."""
    by_look: dict[str, str] = {}
    for name in class_names:
        other = by_look.setdefault(unicodedata.normalize("NFC", name).strip(), name)
        if other != name:
            raise FractalError(
                f"the classes {other!a} and {name!a} look the same: put their images "
                f"into one class, or rename one"
            )
