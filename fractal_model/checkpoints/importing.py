"""Import of a published `checkpoint-last.pth`, without running any code that it contains.

The file is a zip archive by `torch.save`: a pickle and the tensors' bytes. Decided here:

- The pickle may name torch's own tensor types. For the training settings it may also name
  `argparse.Namespace` and paths; paths become pure paths. Creating such objects runs no other code.
  If the pickle names any other type, the file is refused before that type is imported.
- The archive's table of contents, at its end, and each record's CRC-32 are checked first, so that
  the error says whether the download is partial or damaged.
- Weights are mapped from the file, not read into memory. Optimiser state is not read.
"""

import argparse
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from fractal_model.checkpoints.checkpoint import Progress, save_checkpoint
from fractal_model.checkpoints.published_names import from_published
from fractal_model.common.errors import FractalError, one_line
from fractal_model.config.params import Params, Size
from fractal_model.config.serving import ServingConfig
from fractal_model.config.weights import MODEL
from fractal_model.model.fractal import FractalModel
from fractal_model.model.weights import as_float32, differences

IMPORTED = "imported"
"""Value of `Progress.fingerprint` in an imported checkpoint, which no run of this project
trained."""
IMAGENET_CLASSES, IMAGENET_TRAINING_IMAGES = 1000, 1_281_167
_IMAGENET_NAMES = Path(__file__).with_name("imagenet_classes.txt")
"""The names that torchvision has for the classes, one a line."""
_ZIP_START, _OLD_STARTS = b"PK\x03\x04", (b"\x80\x02", b"\x80\x03", b"\x80\x04")
_CHUNK = 1 << 22
_PURE_PATHS = [
    (pure, f"{module}.{name}")
    for module in ("pathlib", "pathlib._local")  # Python 3.13 writes the second.
    for pure in (PurePosixPath, PureWindowsPath)
    for name in (pure.__name__, pure.__name__.removeprefix("Pure"))
]


@dataclass(frozen=True)
class Published:
    """The parts of a published checkpoint that an import uses."""

    weights: dict[str, Tensor]
    """Weights by our parameter names, in the precision of the file and mapped from the file."""
    epoch: int | None
    """Number of the last finished epoch, counted from 0; None if the file does not contain it."""


def read_published(file: Path, progress: Callable[[int], None]) -> Published:
    """Read and check a published checkpoint; `progress` gets the number of bytes checked so far.
    FractalError: the file is missing, partial, damaged, of another format, or not plain data."""
    require_archive(file)
    _require_undamaged(file, progress)
    content = _load_plain_data(file)
    model = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(model, Mapping):
        keys = f"the keys {list(content)[:3]}" if isinstance(content, Mapping) else "no keys"
        raise FractalError(
            f"{file} is not a published checkpoint: its `model` has to be a table of weights, "
            f"found {keys}"
        )
    for name, value in model.items():
        if not (isinstance(name, str) and _is_weight(value)):
            raise FractalError(
                f"{file} is not a published checkpoint: {name!r} of its `model` is "
                f"{_type_name(value)}, expected a tensor of floating-point numbers"
            )
    weights = from_published(model)
    if len(weights) != len(model):
        raise FractalError(
            f"{file} is not a published checkpoint: the {len(model)} names in its `model` stand "
            f"for only {len(weights)} parameters, expected one name for each; download it again"
        )
    epoch = content.get("epoch")
    return Published(weights, epoch if type(epoch) is int and epoch >= 0 else None)


def import_published(
    file: Path, published: Published, size: Size, params: Params, folder: Path
) -> None:
    """Write a published checkpoint to the new `folder` as a checkpoint of ours, without optimiser
    state. Errors name `file`, the source of `published`, and the sizes of `params` that it fits.
    FractalError: the weights do not fit `size`, one is not finite, or the disk is full."""
    model = FractalModel.without_memory(size.model)
    if wrong := differences(model.state_dict(), published.weights):
        raise FractalError(
            f"{file} is not of the size {size.name}: {wrong}; {_advice(published, params)}"
        )
    try:
        # Shapes are checked first, because a crafted shape could need any amount of memory.
        weights = as_float32(published.weights)
    except FractalError as error:
        raise FractalError(
            f"{file} is damaged or its training failed: {error}; use an earlier checkpoint"
        ) from error
    model.load_state_dict(weights, assign=True)
    save_checkpoint(
        folder,
        model=model,
        optimizer=None,
        progress=_progress(published, size),
        serving=ServingConfig(weights=MODEL, sampling=size.sampling),
    )


def require_published_layers(size: Size) -> None:
    """Raise FractalError if the size's levels have what no published checkpoint has, before
    anything is downloaded."""
    if size.model.pixel.qk_norm or any(level.qk_norm for level in size.model.levels):
        raise FractalError(
            f"the size {size.name} normalises queries and keys, but no published checkpoint has "
            f"scales for it: set models.{size.name}.qk_norm to false"
        )


def with_imagenet_names(size: Size) -> Size:
    """Return `size` with the class names of ImageNet-1k if it has 1000 classes, else unchanged."""
    if size.model.num_classes != IMAGENET_CLASSES:
        return size
    return size.with_class_names(tuple(_IMAGENET_NAMES.read_text().splitlines()))


def require_archive(file: Path) -> None:
    """Check that a file is an archive of `torch.save`, by its start and its end only. FractalError:
    the file is missing, empty, cut short, or not an archive of `torch.save`."""
    if not file.is_file():
        kind = "is a folder" if file.is_dir() else "is not a regular file"
        reason = kind if file.exists() else "does not exist"
        raise FractalError(f"{file} {reason}: give the path of a downloaded checkpoint-last.pth")
    try:
        with file.open("rb") as stream:
            start = stream.read(512)
    except OSError as error:
        raise FractalError(f"{file} cannot be read ({error.strerror}): make it readable") from error
    if start.startswith(_ZIP_START) and _has_table_of_contents(file):
        return
    beginning = repr(start[:24].decode("ascii", errors="replace"))
    if not start:
        reason = "is empty: the download failed, start it again"
    elif start.startswith(_ZIP_START):
        reason = (
            f"is a partial download: it stops after {file.stat().st_size:,} bytes, before the "
            f"table of contents that ends a checkpoint; download the whole file"
        )
    elif start.lstrip().startswith(b"<"):
        reason = (
            f"is a web page, not a checkpoint (it starts with {beginning}): open it in a browser "
            f"to see what the server asks for, then download the file itself"
        )
    elif start.startswith(_OLD_STARTS) or start[257:262] == b"ustar":
        reason = (
            "has the format of torch before 1.6, or is a plain pickle, expected a zip file of "
            "torch.save: ask its author to save it again with a newer torch"
        )
    else:
        reason = (
            f"is not a checkpoint of torch.save: it starts with {beginning}; give the path of a "
            f"downloaded checkpoint-last.pth"
        )
    raise FractalError(f"{file} {reason}")


def _has_table_of_contents(file: Path) -> bool:
    """True if the file ends with the table of contents of a zip file. The table may be damaged:
    `_require_undamaged` checks its entries."""
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:  # The table exists and is damaged.
        return True


def _require_undamaged(file: Path, progress: Callable[[int], None]) -> None:
    """Compare every record of the archive with its CRC-32, because torch does not compare them when
    it maps tensors. `progress` is called with the number of bytes checked so far."""
    done = 0
    try:
        with zipfile.ZipFile(file) as archive:
            for record in archive.infolist():
                with archive.open(record) as stream:
                    while chunk := stream.read(_CHUNK):
                        done += len(chunk)
                        progress(done)
        progress(file.stat().st_size)  # The size includes the bytes between records.
    # A damaged table of contents can cause any error: a name that is not text, an offset before
    # the file's start, a record that seems encrypted.
    except Exception as error:
        raise FractalError(
            f"{file} is damaged ({one_line(error)}): part of it was not downloaded or has "
            f"changed; download it again"
        ) from error


def _load_plain_data(file: Path) -> Any:
    with safe_globals([argparse.Namespace, *_PURE_PATHS]):
        try:
            refused = get_unsafe_globals_in_checkpoint(file)
            if not refused:
                return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        # A crafted pickle can cause any error, but never runs its code.
        except Exception as error:
            raise FractalError(
                f"{file} is refused, nothing in it was run: its content is not that of a published "
                f"checkpoint ({type(error).__name__}: {one_line(error)[:200]})"
            ) from error
    raise FractalError(
        f"{file} is refused, nothing in it was run: it holds {', '.join(sorted(refused))}, which "
        f"is not plain data and could run code; do not use a checkpoint from this source"
    )


def _is_weight(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout == torch.strided
        and value.device.type == "cpu"
    )


def _type_name(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"of type {type(value).__name__}"
    return f"a tensor of {value.dtype}, {value.layout}, on {value.device.type}"


def _advice(published: Published, params: Params) -> str:
    fitting_sizes = [
        name
        for name in params.models
        if not differences(
            FractalModel.without_memory(params.size(name).model).state_dict(), published.weights
        )
    ]
    if fitting_sizes:
        return f"it fits {' and '.join(fitting_sizes)}, give the size {fitting_sizes[0]}"
    return f"none of the sizes of params.yaml fits it ({', '.join(params.models)})"


def _progress(published: Published, size: Size) -> Progress:
    """Return the progress of an imported checkpoint. Its `position` is the number of trained epochs
    times the number of ImageNet's training images. The position is 0 if the epoch is unknown, or if
    the size does not have ImageNet's number of classes."""
    epoch = published.epoch if size.model.num_classes == IMAGENET_CLASSES else None
    position = 0 if epoch is None else (epoch + 1) * IMAGENET_TRAINING_IMAGES
    steps = position // size.training.batch_size
    return Progress(size=size.name, fingerprint=IMPORTED, position=position, steps=steps)
