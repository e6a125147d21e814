"""A published `checkpoint-last.pth` read without running what is pickled in it.

Such a file is a zip that `torch.save` wrote: a pickle, and the tensors' bytes. Decided here:

- The pickle may name torch's own tensor types and, for the settings kept beside the weights,
  `argparse.Namespace` and paths, which become pure paths: none of them touches anything outside
  itself. Any other name is refused before the first is looked up.
- The archive's table of contents (at its end) and each record's CRC-32 are checked first, so that
  a download that is cut short, or has a hole, is told as such.
- Weights are mapped from the file, not read into memory; optimiser state is never touched.
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
from fractal_model.config.model import ModelConfig
from fractal_model.config.params import Params, Size
from fractal_model.model.fractal import FractalModel
from fractal_model.model.weights import as_float32, differences

IMPORTED = "imported"
"""The fingerprint in an imported checkpoint's progress: no run of ours made it."""
IMAGENET_CLASSES, IMAGENET_TRAINING_IMAGES = 1000, 1_281_167
_ZIP_START, _OLD_STARTS = b"PK\x03\x04", (b"\x80\x02", b"\x80\x03", b"\x80\x04")
_CHUNK = 1 << 22
_PURE_PATHS = [
    (pure, f"{module}.{name}")
    for module in ("pathlib", "pathlib._local")  # the second is what Python 3.13 wrote
    for pure in (PurePosixPath, PureWindowsPath)
    for name in (pure.__name__, pure.__name__.removeprefix("Pure"))
]


@dataclass(frozen=True)
class Published:
    """What is used of a published checkpoint."""

    weights: dict[str, Tensor]
    """Under our names, in the file's precision, mapped from the file."""
    epoch: int | None
    """The last finished one, counted from 0; None where the file does not say."""


def read_published(file: Path, progress: Callable[[int], None]) -> Published:
    """Read and check a checkpoint; `progress` is told the number of bytes done so far.
    FractalError: missing, partial, damaged, of another format, or with anything in it that is not
    plain data."""
    require_archive(file)
    _require_undamaged(file, progress)
    content = _load_plain_data(file)
    model = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(model, Mapping):
        found = f"the keys {list(content)[:3]}" if isinstance(content, Mapping) else "no keys"
        raise FractalError(
            f"{file} is not a published checkpoint: its `model` has to be a table of weights, "
            f"found {found}"
        )
    for name, value in model.items():
        if not (isinstance(name, str) and _is_weight(value)):
            raise FractalError(
                f"{file} is not a published checkpoint: {name!r} of its `model` is "
                f"{_described(value)}, expected a tensor of floating-point numbers"
            )
    weights = from_published(model)
    if len(weights) != len(model):
        raise FractalError(
            f"{file} is not a published checkpoint: {len(model)} names of its `model` stand for "
            f"{len(weights)} parameters, some of them twice"
        )
    epoch = content.get("epoch")
    return Published(weights, epoch if type(epoch) is int and epoch >= 0 else None)


def import_published(
    file: Path, published: Published, size: Size, params: Params, folder: Path
) -> None:
    """Write a read checkpoint as one of ours, without optimiser state. FractalError: it is not of
    this size (names the size that it is of), a weight is not finite, or the disk is full."""
    model = _empty_model(size.model)
    if wrong := differences(model.state_dict(), published.weights):
        raise FractalError(
            f"{file} is not of the size {size.name}: {wrong}; {_advice(published, params)}"
        )
    try:
        # Only now: a crafted shape would ask for any amount of memory.
        weights = as_float32(published.weights)
    except FractalError as error:
        raise FractalError(
            f"{file} is damaged or of a training that failed: {error}; take an earlier checkpoint"
        ) from error
    model.load_state_dict(weights, assign=True)
    save_checkpoint(folder, model=model, optimizer=None, progress=_progress(published, size))


def with_imagenet_names(size: Size) -> Size:
    """The same, knowing what ImageNet-1k's classes are called; a size of other classes as it is."""
    if size.model.num_classes != IMAGENET_CLASSES:
        return size
    from torchvision.models import ResNet18_Weights

    return size.with_class_names(tuple(ResNet18_Weights.DEFAULT.meta["categories"]))


def require_archive(file: Path) -> None:
    """A quick look at the file's start and end. FractalError: missing, empty, cut short, or
    something else than an archive of `torch.save`."""
    if not file.is_file():
        kind = "is a folder" if file.is_dir() else "is no regular file"
        reason = kind if file.exists() else "does not exist"
        raise FractalError(f"{file} {reason}: give the path of a downloaded checkpoint-last.pth")
    try:
        with file.open("rb") as stream:
            start = stream.read(512)
    except OSError as error:
        raise FractalError(f"{file} cannot be read: {error.strerror}") from error
    if start.startswith(_ZIP_START) and _has_table_of_contents(file):
        return
    shown = repr(start[:24].decode("ascii", errors="replace"))
    if not start:
        reason = "is empty: the download failed, start it again"
    elif start.startswith(_ZIP_START):
        reason = (
            f"is a partial download: it stops after {file.stat().st_size:,} bytes, before the "
            f"table of contents that ends a checkpoint; download the whole file"
        )
    elif start.lstrip().startswith(b"<"):
        reason = (
            f"is a web page, not a checkpoint (it starts with {shown}): open it in a browser to "
            f"see what the server wants, then download the file itself"
        )
    elif start.startswith(_OLD_STARTS) or start[257:262] == b"ustar":
        reason = (
            "has the format of torch before 1.6, or is a plain pickle: only zip files of "
            "torch.save are read; have whoever made it save it again with a newer torch"
        )
    else:
        reason = (
            f"is not a checkpoint of torch.save: it starts with {shown}; give the path of a "
            f"downloaded checkpoint-last.pth"
        )
    raise FractalError(f"{file} {reason}")


def _has_table_of_contents(file: Path) -> bool:
    """Whether it ends as a zip file does; what the table says is looked at later."""
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:  # there is one, and it is damaged
        return True


def _require_undamaged(file: Path, progress: Callable[[int], None]) -> None:
    """Every record against its CRC-32: mapped tensors would be taken as they are."""
    done = 0
    try:
        with zipfile.ZipFile(file) as archive:
            for record in archive.infolist():
                with archive.open(record) as stream:
                    while chunk := stream.read(_CHUNK):
                        done += len(chunk)
                        progress(done)
        progress(file.stat().st_size)  # what lies between the records is done too
    # A damaged table of contents makes the reader fail in any way there is: a name that is no
    # text, an offset before the file's start, a record that seems encrypted.
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
        # A crafted pickle makes the reader fail in any way there is; none of them runs its code.
        except Exception as error:
            raise FractalError(
                f"{file} is refused, nothing in it was run: its contents are not those of a "
                f"published checkpoint ({type(error).__name__}: {one_line(error)[:200]})"
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


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"of type {type(value).__name__}"
    return f"a tensor of {value.dtype}, {value.layout}, on {value.device.type}"


def _empty_model(config: ModelConfig) -> FractalModel:
    """Names and shapes without memory for the numbers."""
    with torch.device("meta"):
        return FractalModel(config)


def _advice(published: Published, params: Params) -> str:
    fitting = [
        name
        for name in params.models
        if not differences(_empty_model(params.size(name).model).state_dict(), published.weights)
    ]
    if fitting:
        return f"it fits {' and '.join(fitting)}, give the size {fitting[0]}"
    return f"none of the sizes of params.yaml fits it ({', '.join(params.models)})"


def _progress(published: Published, size: Size) -> Progress:
    """Position from the epoch where the training data is known: ImageNet's sizes."""
    epoch = published.epoch if size.model.num_classes == IMAGENET_CLASSES else None
    position = 0 if epoch is None else (epoch + 1) * IMAGENET_TRAINING_IMAGES
    steps = position // size.training.batch_size
    return Progress(size=size.name, fingerprint=IMPORTED, position=position, steps=steps)
