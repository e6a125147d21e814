"""Sets of sampled images in files, and the check that a set is as a protocol demands.

Decided here: a set is a folder as `fractal sample` writes it (numbered PNG files and `labels.npy`),
or ADM's npz (`arr_0` uint8 (N, S, S, 3), `arr_1` the classes). It must state the class of each
image, because metrics need a balanced set. Names, types, sizes and counts are checked before any
image is decoded. Images are read on demand, because 50,000 images of 256 px do not fit every
memory.
"""

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL.ImageFile import ImageFile
from pydantic import ValidationError
from torch import Tensor

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.files import require_regular_file
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
from fractal_model.metrics.npz import read_array_header

_SHOWN = 3
_LONGEST_REASON = 200


class SampleSet(Protocol):
    """N square images of side S and their classes."""

    labels: Tensor
    """Class of each image, (N,) int64."""
    side: int
    """Side of an image in pixels."""

    def images(self, numbers: Sequence[int]) -> Tensor:
        """Read n images by their `numbers`, uint8 (n, 3, S, S). FractalError: a file is damaged."""


def open_sample_set(place: Path) -> SampleSet:
    """Open the set of samples in a folder or an npz file. FractalError: the set is missing or
    incomplete, the folder has other files too, the classes are missing, or the images are not 8-bit
    RGB squares of one size."""
    if place.is_dir():
        return _Folder(place)
    if place.suffix.lower() == ".npz":
        return _Array(place)
    raise FractalError(
        f"{place} holds no samples: give a folder that `fractal sample` wrote, or an .npz file "
        f"with the arrays arr_0 and arr_1"
    )


def read_sample_request(place: Path) -> protocols.SampleRequest | None:
    """Read how the images in the folder `place` were sampled; None if it has no `request.json`.
    FractalError: another version wrote that file, or it is damaged."""
    file = place / SOURCE_FILE
    if not file.is_file():
        return None
    try:
        return protocols.SampleRequest.model_validate_json(file.read_text())
    except (ValidationError, UnicodeDecodeError) as error:
        raise FractalError(
            f"{file} was written by another version or is damaged "
            f"({one_line(error)[:_LONGEST_REASON]}): sample again, or remove it"
        ) from error


def require_protocol(samples: SampleSet, protocol: protocols.Protocol, name: object) -> None:
    """Raise FractalError if the resolution, the number or the classes of the images are not the
    protocol's. The message calls the set `name`."""
    if samples.side != protocol.resolution:
        raise FractalError(
            f"{name} has images of {samples.side} px, the data set {protocol.dataset} of "
            f"{protocol.resolution} px: give samples of that size"
        )
    if len(samples.labels) != protocol.samples:
        raise FractalError(
            f"{name} has {count_of(len(samples.labels), 'image')}, the protocol of "
            f"{protocol.dataset} asks for {protocol.samples:,}: draw as many, or ask for a preview",
            setting="preview",
        )
    require_balance(samples.labels, protocol.classes, name)


def require_balance(labels: Tensor, classes: int, name: object) -> int:
    """Return the number of images of each class. FractalError: the number differs between classes,
    or a label is not a class number. The message calls the set `name`."""
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise FractalError(
            f"{name} has {count_of(len(outside), 'image')} of unknown classes such as "
            f"{int(outside[0])}, the data set has 0 … {classes - 1}: sample these classes only"
        )
    counts = torch.bincount(labels, minlength=classes)
    fewest, most = int(counts.argmin()), int(counts.argmax())
    if counts[fewest] != counts[most]:
        raise FractalError(
            f"{name} is not balanced, it has {counts[most]} of class {most} and "
            f"{counts[fewest]} of class {fewest}: sample the same number of each class"
        )
    return int(counts[0])


class _Folder:
    """A `SampleSet` of numbered PNG files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.labels = _read_labels(folder / LABELS_FILE)
        self._require_exactly_the_images()
        self.side = self._common_side()

    def images(self, numbers: Sequence[int]) -> Tensor:
        pictures = []
        for number in numbers:
            with _open_png(self._file(number)) as picture:
                rgb = decode(picture).rgb
            pictures.append(torch.from_numpy(np.array(rgb)).permute(2, 0, 1))
        return torch.stack(pictures)

    def _file(self, number: int) -> Path:
        return self._folder / image_name(number, len(self.labels))

    def _require_exactly_the_images(self) -> None:
        expected = {self._file(number).name for number in range(len(self.labels))}
        other_files = {LABELS_FILE, REQUEST_FILE, SOURCE_FILE}
        names = {file.name for file in self._folder.iterdir()} - other_files
        # An unfinished image counts, although it is hidden: the folder is still being written.
        present = {name for name in names if ".partial" in name or not is_litter(name)}
        for names, problem, way_out in (
            (expected - present, "lacks", "sample again, only missing images are drawn"),
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
            with _open_png(self._file(number)) as picture:
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
    """A `SampleSet` in an npz of ADM's form. Images are read fastest in the order of the file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            require_regular_file(file)
            self._archive = zipfile.ZipFile(file)
            with self._archive.open(f"{LABELS}.npy") as stream:
                labels = np.lib.format.read_array(stream, allow_pickle=False)
            self._stream = self._archive.open(f"{ARRAY}.npy")
            shape, is_fortran, dtype = read_array_header(self._stream)
            self._start = self._stream.tell()
        except (OSError, ValueError, KeyError, zlib.error, zipfile.BadZipFile) as error:
            raise FractalError(
                f"{file} holds no samples ({one_line(error)}): give an .npz of {ARRAY}, uint8 "
                f"(N, H, W, 3), and {LABELS}, the N classes"
            ) from error
        self.labels = _as_labels(labels, file, LABELS)
        expected = (len(self.labels), *shape[1:2] * 2, 3)
        if dtype != np.uint8 or is_fortran or shape != expected:
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
            raise _damaged_file_error(self._file, error) from error
        return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2)


def _read_labels(file: Path) -> Tensor:
    try:
        require_regular_file(file)
        return _as_labels(np.load(file, allow_pickle=False), file.parent, file.name)
    except FileNotFoundError as error:
        raise FractalError(
            f"the folder {file.parent} does not state the classes of its images: sample with this "
            f"version, or write {file.name} there, int64, one number for each image"
        ) from error
    except (ValueError, OSError, EOFError) as error:
        raise _damaged_file_error(file, error) from error


def _as_labels(labels: np.ndarray, place: Path, name: str) -> Tensor:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or not len(labels):
        raise FractalError(
            f"{place} has {name} of {labels.dtype} {labels.shape}, expected integers (N,), the "
            f"class of each image: write them in this form"
        )
    return torch.from_numpy(labels.astype(np.int64))


@contextmanager
def _open_png(file: Path) -> Iterator[ImageFile]:
    try:
        require_regular_file(file)
        with file.open("rb") as content, open_picture(content, ("PNG",)) as picture:
            yield picture
    except (OSError, UnusableImage) as error:
        raise _damaged_file_error(file, error) from error


def _kind(picture: ImageFile) -> str:
    """Return "RGB" for a PNG file with three channels of 8 bits, else another name. Pillow's own
    `mode` is RGB also for 16 bits per channel and for images with a transparent colour."""
    kind = str(picture.tile[0].args) if picture.tile else picture.mode
    return f"{kind} with transparency" if "transparency" in picture.info else kind


def _damaged_file_error(file: Path, error: Exception) -> FractalError:
    return FractalError(f"{file} is damaged ({one_line(error)}): remove it and sample again")
