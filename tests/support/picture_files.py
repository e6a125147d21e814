"""Picture files written byte by byte, so that their pixels are known without a decoder."""

from __future__ import annotations

import struct
import zlib

GREY, RGB, PALETTE = 0, 2, 3
"""PNG's colour types."""


def png(width: int, depth: int, colour: int, row: bytes, height: int = 1, **chunks: bytes) -> bytes:
    """A PNG file of `height` equal rows; `chunks` such as PLTE and tRNS come before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = {"IHDR": header, **chunks, "IDAT": zlib.compress((b"\0" + row) * height), "IEND": b""}
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in parts.items():
        chunk = name.encode() + data
        content += struct.pack(">I", len(data)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return content


SHORT, LONG = 3, 4
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
"""TIFF's field types and sample formats."""


def tiff(
    width: int,
    bits: int,
    row: bytes,
    *,
    order: str = "<",
    kind: int = UNSIGNED,
    white_is_zero: bool = False,
) -> bytes:
    """A TIFF file of one row of grey pixels."""
    tags = [
        (256, LONG, width),
        (257, LONG, 1),
        (258, SHORT, bits),
        (259, SHORT, 1),  # without compression
        (262, SHORT, 0 if white_is_zero else 1),
        (273, LONG, 8),  # offset of the pixels
        (277, SHORT, 1),
        (278, LONG, 1),
        (279, LONG, len(row)),
        (339, SHORT, kind),
    ]
    content = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(row)) + row
    content += struct.pack(f"{order}H", len(tags))
    for tag, size, value in tags:
        content += struct.pack(f"{order}HHI", tag, size, 1)
        content += struct.pack(
            f"{order}{'HH' if size == SHORT else 'I'}", value, *[0] * (size == SHORT)
        )
    return content + struct.pack(f"{order}I", 0)
