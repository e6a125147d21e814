"""Sets of sampled images that came as files, and whether a protocol allows a number to come of one.

Decided here: a folder as `fractal sample` writes it (numbered PNG files and `labels.npy`), or ADM's
npz (`arr_0` uint8 (N, H, W, 3), `arr_1` the classes). A set says its classes, or its balance would
be unknown. Names, types, sizes and counts are checked before any image is looked at, and images
are read as they are wanted: 50,000 of 256 px do not fit every memory.
"""

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import torch
from PIL.ImageFile import ImageFile
from pydantic import ValidationError
from torch import Tensor

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.litter import is_litter
from fractal_model.common.plurals import count_of
from fractal_model.data.decoding import UnusableImage, decode, open_picture
from fractal_model.evaluation import protocol as protocols
from fractal_model.generation.sample_files import (
    ARRAY,
    LABELS,
    LABELS_FILE,
    REQUEST_FILE,
    SOURCE_FILE,
    image_name,
)

_SHOWN = 3
_LONGEST_REASON = 200


class SampleSet(Protocol):
    """N square images and their classes."""

    labels: Tensor
    """(N,) int64"""
    side: int
    """In pixels."""

    def images(self, numbers: Sequence[int]) -> Tensor:
        """uint8 (n, 3, S, S) of these images. FractalError: a file is damaged."""


def open_sample_set(place: Path) -> SampleSet:
    """The set in a folder or an npz file. FractalError: missing, incomplete, with files that do not
    belong to it, without classes, or of images that are not 8-bit RGB squares of one size."""
    if place.is_dir():
        return _Folder(place)
    if place.suffix.lower() == ".npz":
        return _Array(place)
    raise FractalError(
        f"{place} holds no samples: give a folder that `fractal sample` wrote, or an .npz file of "
        f"arr_0 and arr_1"
    )


def read_sample_request(place: Path) -> protocols.SampleRequest | None:
    """How the images in a folder were sampled; None where it does not say. FractalError: written by
    another version."""
    file = place / SOURCE_FILE
    if not file.is_file():
        return None
    try:
        return protocols.SampleRequest.model_validate_json(file.read_text())
    except (ValidationError, UnicodeDecodeError) as error:
        raise FractalError(
            f"{file} does not say how the images were sampled as this version does "
            f"({one_line(error)[:_LONGEST_REASON]}): sample again, or remove it"
        ) from error


def require_protocol(samples: SampleSet, protocol: protocols.Protocol, what: object) -> None:
    """FractalError: the set is not what the protocol asks for, so that no number of it may be
    reported; `what` names it."""
    if samples.side != protocol.resolution:
        raise FractalError(
            f"{what} has images of {samples.side} px, the data set {protocol.dataset} of "
            f"{protocol.resolution} px: give samples of that size"
        )
    if len(samples.labels) != protocol.samples:
        raise FractalError(
            f"{what} has {count_of(len(samples.labels), 'image')}, the protocol of "
            f"{protocol.dataset} asks for {protocol.samples:,}: draw as many, or ask for a preview",
            setting="preview",
        )
    require_balance(samples.labels, protocol.classes, what)


def require_balance(labels: Tensor, classes: int, what: object) -> int:
    """How many images of each class there are. FractalError: not the same number of each."""
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise FractalError(
            f"{what} has {count_of(len(outside), 'image')} of class {int(outside[0])}, the data "
            f"set has the classes 0 … {classes - 1}: sample the same number of each of them"
        )
    counts = torch.bincount(labels, minlength=classes)
    fewest, most = int(counts.argmin()), int(counts.argmax())
    if counts[fewest] != counts[most]:
        raise FractalError(
            f"{what} is not balanced, it has {counts[most]} of class {most} and "
            f"{counts[fewest]} of class {fewest}: sample the same number of each class"
        )
    return int(counts[0])


class _Folder:
    """Numbered PNG files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.labels = _read_labels(folder / LABELS_FILE)
        self._require_exactly_the_images()
        self.side = self._common_side()

    def images(self, numbers: Sequence[int]) -> Tensor:
        pictures = []
        for number in numbers:
            with _opened_png(self._file(number)) as picture:
                rgb = decode(picture).rgb
            pictures.append(torch.from_numpy(np.array(rgb)).permute(2, 0, 1))
        return torch.stack(pictures)

    def _file(self, number: int) -> Path:
        return self._folder / image_name(number, len(self.labels))

    def _require_exactly_the_images(self) -> None:
        expected = {self._file(number).name for number in range(len(self.labels))}
        ours = {LABELS_FILE, REQUEST_FILE, SOURCE_FILE}
        names = {file.name for file in self._folder.iterdir()} - ours
        # An unfinished image, which is hidden too, tells that the folder is being written.
        present = {name for name in names if ".partial" in name or not is_litter(name)}
        for names, problem, way_out in (
            (expected - present, "lacks", "sample again, it goes on where it stopped"),
            (present - expected, "also holds", "remove what does not belong to the set"),
        ):
            if names:
                shown = ", ".join(sorted(names)[:_SHOWN])
                raise FractalError(
                    f"the folder {self._folder} {problem} {count_of(len(names), 'file')} ({shown}"
                    f"{', …' if len(names) > _SHOWN else ''}), "
                    f"expected {count_of(len(expected), 'image')}: {way_out}"
                )

    def _common_side(self) -> int:
        side = None
        for number in range(len(self.labels)):
            with _opened_png(self._file(number)) as picture:
                (width, height), kind = picture.size, _kind(picture)
            if kind != "RGB" or width != height or side not in (None, width):
                raise FractalError(
                    f"{self._file(number)} is {kind} of {width} × {height} px, "
                    f"expected 8-bit RGB{f' of {side} × {side} px' if side else ' squares'}: "
                    f"give one set of equal images"
                )
            side = width
        return side or 0


class _Array:
    """ADM's npz, read as a stream: batches in order cost one pass."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self._archive = zipfile.ZipFile(file)
            with self._archive.open(f"{LABELS}.npy") as stream:
                labels = np.lib.format.read_array(stream, allow_pickle=False)
            self._stream = self._archive.open(f"{ARRAY}.npy")
            shape, order, dtype = _array_header(self._stream)
            self._start = self._stream.tell()
        except (OSError, ValueError, KeyError, zlib.error, zipfile.BadZipFile) as error:
            raise FractalError(
                f"{file} holds no samples ({one_line(error)}): give an .npz of {ARRAY}, uint8 "
                f"(N, H, W, 3), and {LABELS}, the N classes"
            ) from error
        self.labels = _as_labels(labels, file, LABELS)
        wanted = (len(self.labels), *shape[1:2] * 2, 3)
        if dtype != np.uint8 or order or shape != wanted:
            raise FractalError(
                f"{file} has {ARRAY} of {dtype} {shape} and {len(self.labels)} classes, expected "
                f"uint8 (N, S, S, 3) and N classes: write the samples as 8-bit RGB"
            )
        self.side = shape[1]

    def images(self, numbers: Sequence[int]) -> Tensor:
        shape = (self.side, self.side, 3)
        size = int(np.prod(shape))
        rows = []
        try:
            for number in numbers:
                self._stream.seek(self._start + number * size)
                rows.append(np.frombuffer(self._stream.read(size), np.uint8).reshape(shape))
        except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise _damaged(self._file, error) from error
        return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2)


def _array_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    return read[version](stream)


def _read_labels(file: Path) -> Tensor:
    try:
        return _as_labels(np.load(file, allow_pickle=False), file.parent, file.name)
    except FileNotFoundError as error:
        raise FractalError(
            f"the folder {file.parent} does not say its images' classes, so that their balance is "
            f"unknown: sample with this version, or write {file.name} there, int64, one an image"
        ) from error
    except (ValueError, OSError, EOFError) as error:
        raise _damaged(file, error) from error


def _as_labels(labels: np.ndarray, place: Path, name: str) -> Tensor:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or not len(labels):
        raise FractalError(
            f"{place} has {name} of {labels.dtype} {labels.shape}, expected one whole number an "
            f"image, its class: write it so"
        )
    return torch.from_numpy(labels.astype(np.int64))


@contextmanager
def _opened_png(file: Path) -> Iterator[ImageFile]:
    try:
        with file.open("rb") as content, open_picture(content, ("PNG",)) as picture:
            yield picture
    except (OSError, UnusableImage) as error:
        raise _damaged(file, error) from error


def _kind(picture: ImageFile) -> str:
    """RGB for a PNG file of three channels of 8 bits, else what it is instead. Pillow's own mode is
    RGB also where there are 16 bits a channel, or a colour that is transparent."""
    kind = str(picture.tile[0].args) if picture.tile else picture.mode
    return f"{kind} with transparency" if "transparency" in picture.info else kind


def _damaged(file: Path, error: Exception) -> FractalError:
    return FractalError(f"{file} is damaged ({one_line(error)}): remove it and sample again")
