"""Writers of sampled images: a grid, a folder of numbered PNG files, or one array.

Decided here: the path's suffix selects the writer. A path that cannot be written is refused before
anything is sampled. Only a grid is held in memory as a whole, so its number of images is limited. A
writer takes the images in any order.
"""

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fractal_model.common.errors import FractalError
from fractal_model.common.files import atomic_file, require_writable, require_writable_file
from fractal_model.common.litter import is_litter
from fractal_model.generation.pictures import picture_grid, save_png

LARGEST_GRID = 1024
GRID_COLUMNS = 32
"""Largest number of images in a row of a grid."""
ARRAY, LABELS = "arr_0", "arr_1"
REQUEST_FILE = "request.sha256"
"""File in a folder of samples with the fingerprint of everything that decides the samples."""
SOURCE_FILE = "request.json"
"""File in a folder of samples with a description of them: a `SampleRequest` of
`evaluation.protocol` as JSON."""
LABELS_FILE = "labels.npy"
"""File in a folder of samples with the class of each image, (N,) int64, −1 for no class."""


class SampleWriter(ABC):
    """Writes images, which come in any order, to one or more files."""

    missing: Sequence[int]
    """Numbers of the images that are not written yet."""

    @abstractmethod
    def add(self, numbers: Sequence[int], images: Tensor) -> None:
        """Write n images, (n, 3, S, S) uint8. `numbers` has the number of each among all images."""

    def finish(self) -> None:  # noqa: B027
        """Complete the file or files. Call this after the last image."""

    def discard(self) -> None:  # noqa: B027
        """Remove incomplete files. Call this after a failure."""


def open_writer(
    out: Path,
    labels: Tensor,
    *,
    image_size: int,
    per_class: int,
    request: str,
    source: str | None = None,
) -> SampleWriter:
    """Open the writer that the suffix of `out` selects, for N images of the classes `labels` (N,).

    `per_class` is the number of images of a class. `request` is the fingerprint of everything that
    decides the images. A folder with a part of the images of this request is completed. `source`
    becomes the content of the folder's SOURCE_FILE. FractalError: the suffix is unknown, the path
    cannot be written, the folder has images of another request or other files, or a grid is too
    large.
    """
    count, suffix = len(labels), out.suffix.lower()
    if suffix == ".png":
        if count > LARGEST_GRID:
            raise FractalError(
                f"a grid of {count} images is too large: a grid has at most {LARGEST_GRID}; for "
                f"more choose a folder (numbered PNG files) or a .npz file"
            )
        require_writable_file(out)
        return _Grid(out, count, image_size, per_class)
    if suffix == ".npz":
        require_writable_file(out)
        return _Array(out, labels, image_size)
    if out.suffix and not out.is_dir():
        raise FractalError(
            f"{out} has the ending {out.suffix!r}: give .png (a grid), .npz (one array), or a "
            f"folder, whose name has none (numbered PNG files)"
        )
    require_writable(out)
    return _Folder(out, labels, request, source)


def image_name(number: int, count: int) -> str:
    """Return the file name of image `number`; all `count` names have the same number of digits."""
    return f"{number:0{len(str(count - 1))}d}.png"


class _Grid(SampleWriter):
    """Writer of one PNG file with all images: one or more rows for each class."""

    def __init__(self, out: Path, count: int, image_size: int, per_class: int) -> None:
        self._out = out
        self._images = torch.empty(count, 3, image_size, image_size, dtype=torch.uint8)
        square = int(np.ceil(np.sqrt(count)))
        self._columns = min(GRID_COLUMNS, per_class if per_class < count else square)
        self.missing = range(count)

    def add(self, numbers: Sequence[int], images: Tensor) -> None:
        self._images[list(numbers)] = images

    def finish(self) -> None:
        save_png(picture_grid(self._images, columns=self._columns), self._out)


class _Folder(SampleWriter):
    """Writer of a folder with 000.png, 001.png, … and a file of their classes. The folder keeps its
    images after a failure, and a later writer with an equal request adds the missing ones."""

    def __init__(self, out: Path, labels: Tensor, request: str, source: str | None) -> None:
        self._out = out
        self._count = len(labels)
        self._require_request(request)
        if source is not None:
            with atomic_file(out / SOURCE_FILE) as partial:
                partial.write_text(f"{source}\n")
        with atomic_file(out / LABELS_FILE) as partial:
            np.save(partial, labels.numpy())
        self.missing = [number for number in range(self._count) if not self._file(number).exists()]

    def add(self, numbers: Sequence[int], images: Tensor) -> None:
        for number, image in zip(numbers, images, strict=True):
            save_png(image, self._file(number))

    def _file(self, number: int) -> Path:
        return self._out / image_name(number, self._count)

    def _require_request(self, request: str) -> None:
        """Check that the folder's images have the fingerprint `request`; write it if there are no
        images. FractalError: the folder has images of another request, or other files."""
        file = self._out / REQUEST_FILE
        if file.is_file() and file.read_text().strip() == request:
            return
        if file.exists() or any(png.stem.isdecimal() for png in self._out.glob("*.png")):
            raise FractalError(
                f"the folder {self._out} holds images of another model, class, seed or setting: "
                f"choose another folder, or remove the images and {REQUEST_FILE}"
            )
        others = {file.name for file in self._out.iterdir()} - {LABELS_FILE, SOURCE_FILE}
        if other := sorted(name for name in others if not is_litter(name)):
            raise FractalError(
                f"the folder {self._out} has other files, such as {other[0]}: choose a new or an "
                f"empty folder"
            )
        with atomic_file(file) as partial:
            partial.write_text(f"{request}\n")


class _Array(SampleWriter):
    """Writer of one .npz file in the format of ADM's evaluation: images as `arr_0` (N, H, W, 3)
    uint8, and classes (−1 for none) as `arr_1`. Until `finish` is called, the images are in a
    hidden folder beside the file."""

    def __init__(self, out: Path, labels: Tensor, image_size: int) -> None:
        self._out, self._labels = out, labels
        self._folder, self.missing = out.with_name(f".{out.name}.partial"), range(len(labels))
        shutil.rmtree(self._folder, ignore_errors=True)
        file = self._folder / f"{ARRAY}.npy"
        try:
            self._folder.mkdir()
            self._images = np.lib.format.open_memmap(
                file, mode="w+", dtype=np.uint8, shape=(len(labels), image_size, image_size, 3)
            )
            # Writing to a mapped file on a full disk would kill the process without a message.
            with file.open("r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
        except BaseException as error:  # also Ctrl-C, as reserving much space takes a while
            self.discard()
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror, str(out)) from error
            raise

    def add(self, numbers: Sequence[int], images: Tensor) -> None:
        self._images[list(numbers)] = images.permute(0, 2, 3, 1).numpy()

    def finish(self) -> None:
        packed = self._folder / "packed.npz"
        np.savez(packed, self._images, self._labels.numpy())  # as `arr_0` and `arr_1`
        packed.replace(self._out)
        self.discard()

    def discard(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
