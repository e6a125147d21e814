"""The manifest of a prepared data set: what it holds, where it came from and what it must hash to.

Decided here: the format version, and the checksum. The checksum covers decoded pixels and labels
in order, so that it stays the same when another version of Arrow or of the PNG encoder writes
other bytes for the same images.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
from pydantic import Field, ValidationError, model_validator

from fractal_model.config import PositiveInt, StrictModel
from fractal_model.errors import FractalError, one_line

FormatVersion = Literal[1]
FORMAT_VERSION: FormatVersion = get_args(FormatVersion)[0]
MANIFEST_NAME = "manifest.json"

Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class SplitRecord(StrictModel):
    """One split: how many images, and their checksum."""

    images: PositiveInt
    images_per_class: tuple[Count, ...]
    """In the order of the class names."""
    checksum: Sha256
    """SHA-256 over decoded pixels and labels in order (`ContentHash`)."""

    @model_validator(mode="after")
    def _counts_agree(self) -> SplitRecord:
        if sum(self.images_per_class) != self.images:
            raise ValueError(
                f"images_per_class adds up to {sum(self.images_per_class)}, images is {self.images}"
            )
        return self


class QuarantinedFile(StrictModel):
    """A raw file that was left out."""

    file: str
    reason: str


class Manifest(StrictModel):
    """What `manifest.json` holds."""

    dataset: str
    format_version: FormatVersion = FORMAT_VERSION
    source: str
    """Where the images came from."""
    preprocessing: str
    """What was done to them, with the version of that code."""
    resolution: PositiveInt
    """Side of the square images, in pixels."""
    channels: Literal[3] = 3
    class_names: Annotated[tuple[str, ...], Field(min_length=1)]
    splits: Annotated[dict[str, SplitRecord], Field(min_length=1)]
    quarantined: tuple[QuarantinedFile, ...] = ()

    @property
    def checksum(self) -> str:
        """SHA-256 of the whole data set: over the splits' names and checksums, by name."""
        lines = (f"{name} {record.checksum}\n" for name, record in sorted(self.splits.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @model_validator(mode="after")
    def _classes_agree(self) -> Manifest:
        for name, record in self.splits.items():
            if len(record.images_per_class) != len(self.class_names):
                raise ValueError(
                    f"split {name} counts {len(record.images_per_class)} classes, "
                    f"class_names has {len(self.class_names)}"
                )
        return self


class ContentHash:
    """Counts and hashes the images of a split as they pass by."""

    def __init__(self, resolution: int, classes: int) -> None:
        self._per_class = [0] * classes
        self._sha = hashlib.sha256(f"{resolution}x{resolution}x3 uint8, int64\n".encode())

    @property
    def classes(self) -> int:
        return len(self._per_class)

    def add(self, image: np.ndarray, label: int) -> None:
        """`image` is uint8 (H, W, 3); the label counts as eight little-endian bytes."""
        self._sha.update(np.ascontiguousarray(image))
        self._sha.update(label.to_bytes(8, "little"))
        self._per_class[label] += 1

    def record(self) -> SplitRecord:
        """The record of everything added so far."""
        return SplitRecord(
            images=sum(self._per_class),
            images_per_class=tuple(self._per_class),
            checksum=self._sha.hexdigest(),
        )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json`; equal manifests give equal bytes."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False)
    (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """The manifest in `folder`.

    Raises FractalError when the folder or the manifest is missing, when the manifest is
    unreadable and when it has another format version.
    """
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise FractalError(f"no prepared data set at {folder}: build it with `dvc repro`")
    if not path.is_file():
        raise FractalError(
            f"{folder} has no {MANIFEST_NAME}, so it is not a complete prepared data set: "
            f"build it with `dvc repro`"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        # Before the fields are checked: another version may have other fields.
        version = found.get("format_version") if isinstance(found, dict) else FORMAT_VERSION
        if version != FORMAT_VERSION:
            raise FractalError(
                f"{path} has format version {version!r}, this version of fractal-model reads "
                f"{FORMAT_VERSION}: build the data set again with `dvc repro --force`"
            )
        return Manifest.model_validate(found)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, ValidationError) as error:
        reason = _reason(error)
        raise FractalError(
            f"{path} is not a readable manifest ({reason}): build the data set again with "
            f"`dvc repro --force`"
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg']}" if where else first["msg"]
    return one_line(error)
