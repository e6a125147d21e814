"""Hypothesis strategies for the fuzz tests: valid, wrong and damaged files and requests."""

from __future__ import annotations

import copy
import io
import math
import struct
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

import yaml
from hypothesis import strategies as st

from tests.support.params import SHIPPED

LINES = SHIPPED.read_text().splitlines()
SETTINGS = yaml.safe_load(SHIPPED.read_text())
for section in (
    "models",
    "training",
    "sampling",
    "evaluation",
    "sweep",
):  # two sizes are quicker than all
    SETTINGS[section] = {size: SETTINGS[section][size] for size in ("digits", "mar-b")}
_WORDS = """
2024-99-99 1e400 -1 0b_ 2147483648 .nan .inf *x &a+[*a] <<:+*recipe-64 !!python/name:os.system
!!timestamp+x !!binary+x ?+ ~ yes 1:2:3 '' digits s3:// {a:+1,+a:+2} %YAML+9 --- é\u202e "\\0"
"\\ud800" \t
"""
WORDS = st.sampled_from(
    [word.replace("+", " ") for word in _WORDS.split()]
    + [part * 500 for part in ("[", "{", "- ", "../", "0x" + "f" * 10, "9" * 10)]
)
_CELL = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JSON = _CELL | st.lists(_CELL, max_size=3) | st.dictionaries(st.text(max_size=5), _CELL, max_size=3)
"""Values of a setting or of a cell in a request."""


@st.composite
def changed_text(draw: st.DrawFn) -> str:
    """The text of params.yaml with some values or whole lines replaced."""
    lines = list(LINES)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(lines) - 1))
        key, colon, _ = lines[place].partition(":")
        word = draw(WORDS | st.text(max_size=20))
        lines[place] = f"{key}{colon} {word}" if draw(st.booleans()) else word
    return "\n".join(lines)


@st.composite
def changed_settings(draw: st.DrawFn) -> str:
    """The text of params.yaml with one value, at any depth, replaced by any other."""
    part = content = copy.deepcopy(SETTINGS)
    while True:
        places = sorted(part) if isinstance(part, dict) else range(len(part))
        place = draw(st.sampled_from(list(places)))
        inner = part[place]
        if not isinstance(inner, dict | list) or not inner or draw(st.integers(0, 4)) == 0:
            break
        part = inner
    number = st.sampled_from([2**31, 2**63, 10**12, 10**400, -1, 0, 1e308, math.inf, math.nan])
    part[place] = draw(JSON | number)
    return yaml.safe_dump(content)


@st.composite
def npz_files(draw: st.DrawFn, names: tuple[str, ...]) -> bytes:
    """A damaged npz file of small arrays of any type, with right or wrong headers."""
    buffer = io.BytesIO()
    kind = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name in draw(st.lists(st.sampled_from(names), unique=True)):
            archive.writestr(f"{name}.npy", draw(_arrays()))
    return draw(damaged(buffer.getvalue()))


@st.composite
def _arrays(draw: st.DrawFn) -> bytes:
    side = st.sampled_from([0, 1, 3, 4, 2048, 10**6, 2**62, -1])
    shape = tuple(draw(st.lists(side, max_size=4)))
    types = ["<f8", "<f4", "<c16", "|O", "|u1", "<U9", "<i8", "|b1", "<M8[s]", "|V8"]
    descr = draw(st.sampled_from(types))
    header = repr({"descr": descr, "fortran_order": draw(st.booleans()), "shape": shape})
    header = draw(st.just(header) | st.text(max_size=30)).encode("latin1", "replace")
    size = 8 * math.prod(shape) if all(0 <= n <= 2048 for n in shape) else 0
    body = bytes(draw(st.sampled_from([0, 7, min(size, 1 << 15)])))
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content unchanged, cut short, or with some bytes changed."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        if changed:
            changed[draw(st.integers(0, len(changed) - 1))] = draw(st.integers(0, 255))
    cut = st.integers(0, len(changed)) if draw(st.integers(0, 3)) == 0 else st.just(len(changed))
    return bytes(changed[: draw(cut)])


@contextmanager
def memory_bound(most_bytes: int) -> Iterator[None]:
    """Fail if the block's allocations in Python and NumPy together exceed `most_bytes`."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= most_bytes, f"{peak:,} bytes"
