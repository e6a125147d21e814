"""ICC profiles whose effect on colours is plain to see."""

from __future__ import annotations

import struct
from itertools import product

from PIL import ImageCms

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _profile(space: bytes, connection: bytes, **tags: bytes) -> bytes:
    """A profile of ICC version 2 for scanners or printers."""
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    header = struct.pack(">II", 0, 0x02400000) + kind + space + connection
    start, table, content = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += name.encode() + struct.pack(">II", start + len(content), len(data))
        content += data
    header += b"\0" * 12 + b"acsp" + b"\0" * 28
    header += struct.pack(">3i", *(round(v * 65536) for v in (0.9642, 1, 0.8249)))
    header = header.ljust(124, b"\0")
    return struct.pack(">I", 4 + len(header) + len(table) + len(content)) + header + table + content


def _swapped() -> bytes:
    """SRGB with the names of red's and green's tags exchanged."""
    exchanged = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}
    content = bytearray(SRGB)
    for number in range(struct.unpack(">I", SRGB[128:132])[0]):
        place = slice(132 + 12 * number, 136 + 12 * number)
        content[place] = exchanged.get(SRGB[place], SRGB[place])
    return bytes(content)


RED_IS_GREEN = _swapped()
"""An RGB profile whose red is sRGB's green, and the reverse."""

_LINEAR = b"curv" + struct.pack(">II", 0, 0)
_WHITE = b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in (0.9642, 1, 0.8249)))
LINEAR_GREY = _profile(b"GRAY", b"XYZ ", wtpt=_WHITE, kTRC=_LINEAR)
"""A grey profile without gamma: 128 is half of the light, which sRGB writes as 188."""


def _cyan_is_black() -> bytes:
    """A table with two values of each ink: cyan makes black, other inks leave the paper white."""
    ramp = bytes(range(256))
    lab = {0: b"\xff\x80\x80", 1: b"\x00\x80\x80"}
    table = b"".join(lab[cyan] for cyan, *_ in product((0, 1), repeat=4))
    matrix = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + table + ramp * 3
    return _profile(b"CMYK", b"Lab ", wtpt=_WHITE, A2B0=lut)


CYAN_IS_BLACK = _cyan_is_black()
