"""Arrays of an npz file that comes from elsewhere: no pickle, and no more memory than is allowed.

Decided here: an array's header is read first, as a file of some bytes can claim, or unpack to, any
size. What numpy and zipfile raise of a damaged file is one exception.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from fractal_model.common.errors import one_line
from fractal_model.common.safe_text import shorten

_HEADER, _LONGEST = 1 << 16, 200


class NotNpzError(ValueError):
    """Why a file cannot be read, on one line."""


def read_arrays(file: Path, most_bytes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Those of the named arrays that the file has, each of at most so many bytes. NotNpzError:
    damaged, pickled, larger, or no npz. FileNotFoundError."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            found = {}
            for name in most_bytes.keys() & members.keys():
                if members[name].file_size > most_bytes[name] + _HEADER:
                    raise NotNpzError(f"{name} unpacks to {members[name].file_size:,} bytes")
                with archive.open(members[name]) as stream:
                    _require_size(stream, name, most_bytes[name])
                with archive.open(members[name]) as stream:
                    found[name] = npy.read_array(stream, allow_pickle=False)
                    stream.read()  # to its end, where the checksum is compared
            return found
    except (FileNotFoundError, NotNpzError, MemoryError):
        raise
    except zipfile.BadZipFile as error:
        with file.open("rb") as stream:
            single = stream.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX
        raise NotNpzError("it is a single array" if single else one_line(error)) from error
    # Damage makes zipfile and numpy fail in any way there is.
    except Exception as error:
        raise NotNpzError(shorten(one_line(error), _LONGEST)) from error


def array_names(file: Path) -> list[str]:
    """The names of all arrays in a file that `read_arrays` has read."""
    with zipfile.ZipFile(file) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def _require_size(stream: IO[bytes], name: str, most_bytes: int) -> None:
    version = npy.read_magic(stream)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    if dtype.hasobject:
        raise NotNpzError(f"{name} is a pickle, which could run code")
    size = dtype.itemsize
    for side in shape:
        size *= side
    if not 0 <= size <= most_bytes:
        raise NotNpzError(f"{name} is {dtype} {shape}, of more than {most_bytes:,} bytes")
