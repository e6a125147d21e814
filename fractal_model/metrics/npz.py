"""Reader of npz files from unknown sources. It unpickles nothing and limits the memory.

Decided here: the header of an array is read first, because a small file can claim, or unpack to,
any size. All exceptions of numpy and zipfile for a damaged file become a `NotNpzError`.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from fractal_model.common.errors import one_line
from fractal_model.common.files import require_regular_file
from fractal_model.common.safe_text import shorten

_HEADER, _LONGEST = 1 << 16, 200


class NotNpzError(ValueError):
    """A file is not a readable npz; the message gives the reason on one line."""


def read_arrays(file: Path, most_bytes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Read the arrays that `most_bytes` names, and return them by name. `most_bytes` maps a name to
    the largest size in bytes that the array may have. An array that the file lacks is left out.
    NotNpzError: the file is damaged or no npz, or an array is pickled or larger than allowed.
    FileNotFoundError: the file is missing."""
    try:
        require_regular_file(file)
        with zipfile.ZipFile(file) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            arrays = {}
            for name in most_bytes.keys() & members.keys():
                if members[name].file_size > most_bytes[name] + _HEADER:
                    raise NotNpzError(f"{name} unpacks to {members[name].file_size:,} bytes")
                with archive.open(members[name]) as stream:
                    _require_size(stream, name, most_bytes[name])
                with archive.open(members[name]) as stream:
                    arrays[name] = npy.read_array(stream, allow_pickle=False)
                    stream.read()  # at the end of the stream zipfile compares the checksum
            return arrays
    except (FileNotFoundError, NotNpzError, MemoryError):
        raise
    except zipfile.BadZipFile as error:
        with file.open("rb") as stream:
            single = stream.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX
        raise NotNpzError("it is one array, not an npz" if single else one_line(error)) from error
    # Zipfile and numpy raise all kinds of exceptions for damaged files.
    except Exception as error:
        raise NotNpzError(shorten(one_line(error), _LONGEST)) from error


def array_names(file: Path) -> list[str]:
    """Return the names of all arrays in a file that `read_arrays` has read before."""
    with zipfile.ZipFile(file) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def read_array_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of a `.npy` stream. Return the array's shape, whether the array is in Fortran
    order, and its data type."""
    if npy.read_magic(stream) == (1, 0):
        return npy.read_array_header_1_0(stream)
    return npy.read_array_header_2_0(stream)


def _require_size(stream: IO[bytes], name: str, most_bytes: int) -> None:
    shape, _, dtype = read_array_header(stream)
    if dtype.hasobject:
        raise NotNpzError(f"{name} is a pickle, which could run code")
    size = dtype.itemsize
    for side in shape:
        size *= side
    if not 0 <= size <= most_bytes:
        raise NotNpzError(f"{name} is {dtype} {shape}, larger than {most_bytes:,} bytes")
