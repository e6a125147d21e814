"""The manifest of a prepared data set: its contents, its origin and its checksums.

Decided here: the format version, and the checksums. An image's checksum covers its decoded pixels
and its label. A split's checksum covers the checksums of its images in order. Both stay the same
when the images are divided into other shards, or when Arrow or the image encoder write other bytes.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

import numpy as np
from pydantic import Field, ValidationError, model_validator

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.strict import PositiveInt, StrictModel
from fractal_model.common.validation import describe
from fractal_model.config.params import Size
from fractal_model.data.object_store import LocalStore, Store, is_remote, store_at

FormatVersion = Literal[2]
FORMAT_VERSION: FormatVersion = get_args(FormatVersion)[0]
MANIFEST_NAME = "manifest.json"
REBUILD = "`dvc repro --force STAGE` (`dvc stage list` names the stages)"
"""Command in errors that builds a damaged data set again."""

Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ShardRecord(StrictModel):
    """One shard: an Arrow file of a split."""

    file: Annotated[str, Field(pattern=r"^[\w-]+/[\w-]+\.arrow$")]
    """Path of the shard's file, relative to the manifest: `<split>/<name>.arrow`."""
    images: Count
    """Number of images; 0 if every image of the shard was left out."""
    bytes: PositiveInt


class SplitRecord(StrictModel):
    """One split: its images, their files and their checksum."""

    images: PositiveInt
    images_per_class: tuple[Count, ...]
    """Number of images of each class, in the order of the class names."""
    checksum: Sha256
    """SHA-256 over the checksums of the split's images, in order. `split_record` computes it."""
    shards: Annotated[tuple[ShardRecord, ...], Field(min_length=1)]
    """The split's files, in the order of their images."""

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        in_shards = sum(shard.images for shard in self.shards)
        in_classes = sum(self.images_per_class)
        if in_shards != self.images:
            raise ValueError(f"its shards have {in_shards} images, but images is {self.images}")
        if in_classes != self.images:
            raise ValueError(f"images_per_class sums to {in_classes}, but images is {self.images}")
        return self


class QuarantinedFile(StrictModel):
    """A raw file that the preparation left out, and the reason."""

    file: str
    reason: str


class Manifest(StrictModel):
    """The contents of `manifest.json`, which describes a prepared data set."""

    dataset: str
    format_version: FormatVersion = FORMAT_VERSION
    source: str
    """Where the images come from, in words."""
    preprocessing: str
    """How the images were decoded and cropped, in words, with the version of that code."""
    resolution: PositiveInt
    """Side of the square images, in pixels."""
    channels: Literal[3] = 3
    class_names: Annotated[tuple[str, ...], Field(min_length=1)]
    splits: Annotated[dict[str, SplitRecord], Field(min_length=1)]
    quarantined: tuple[QuarantinedFile, ...] = ()

    @property
    def checksum(self) -> str:
        """SHA-256 over the names and checksums of all splits, sorted by name."""
        lines = (f"{name} {record.checksum}\n" for name, record in sorted(self.splits.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @model_validator(mode="after")
    def _classes_agree(self) -> Self:
        for name, record in self.splits.items():
            if len(record.images_per_class) != len(self.class_names):
                raise ValueError(
                    f"split {name} counts {len(record.images_per_class)} classes, "
                    f"but class_names has {len(self.class_names)}"
                )
        return self


def split_record(
    side: int, classes: int, checksums: bytes, labels: np.ndarray, shards: Iterable[ShardRecord]
) -> SplitRecord:
    """Return the manifest's entry for a split of N images. `side` is the width and height of an
    image in pixels, `classes` the number of classes. `checksums` has the `image_checksum` of every
    image, joined in order. `labels` are the class numbers, int64 (N,). `shards` are the entries of
    the split's files."""
    kind = f"{side}x{side}x3 uint8, int64\n"
    return SplitRecord(
        images=len(labels),
        images_per_class=tuple(np.bincount(labels, minlength=classes).tolist()),
        checksum=hashlib.sha256(kind.encode() + checksums).hexdigest(),
        shards=tuple(shards),
    )


def image_checksum(pixels: bytes, label: int) -> bytes:
    """Return the SHA-256 of an image, the bytes `pixels` of uint8 (H, W, 3), and its label."""
    return hashlib.sha256(pixels + label.to_bytes(8, "little")).digest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` to `folder`. Equal manifests give equal bytes."""
    text = manifest.model_dump_json(indent=2)
    (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")


def manifest_files(place: Path | str) -> tuple[Path, ...]:
    """Return the file whose presence shows that a worker can read the data set at `place`: the
    absolute path of the manifest in a folder. For an address (s3://…) return no file."""
    return () if is_remote(place) else (Path(place).resolve() / MANIFEST_NAME,)


def read_manifest(place: Path | str) -> Manifest:
    """Read the manifest of the prepared data set in a folder or at an address such as s3://….
    Raises FractalError when the manifest is missing, unreadable or of another format version."""
    store = store_at(place)
    try:
        text = store.read(MANIFEST_NAME)
    except FileNotFoundError as error:
        raise _no_data_set_error(store) from error
    except Exception as error:  # Each object store raises its own exceptions.
        if isinstance(error, FractalError):
            raise
        raise FractalError(
            f"{store} cannot be read ({one_line(error)}): check the place and your access to it"
        ) from error
    try:
        content = json.loads(text.decode())
        # Check the version before the fields, because another version may have other fields.
        version = content.get("format_version") if isinstance(content, dict) else FORMAT_VERSION
        if version != FORMAT_VERSION:
            raise FractalError(
                f"{store}/{MANIFEST_NAME} has format version {version!r}, this version of "
                f"fractal-model reads {FORMAT_VERSION}: build the data set again with "
                f"{REBUILD}"
            )
        return Manifest.model_validate(content)
    except (UnicodeDecodeError, json.JSONDecodeError, ValidationError) as error:
        reason = (
            describe(error, Manifest) if isinstance(error, ValidationError) else one_line(error)
        )
        raise FractalError(
            f"{store}/{MANIFEST_NAME} is not a readable manifest ({reason}): build the data set "
            f"again with {REBUILD}"
        ) from error


def _no_data_set_error(store: Store) -> FractalError:
    if isinstance(store, LocalStore) and store.folder.is_dir():
        return FractalError(
            f"{store} has no {MANIFEST_NAME}, so it is not a complete prepared data set: "
            f"build it with `dvc repro`"
        )
    hint, name = "", Path(str(store)).name
    if isinstance(store, LocalStore) and (near := _nearest_data_set(store.folder)):
        hint = f", did you mean {near!r}?"
    elif name.startswith("imagenet"):
        hint = " (ImageNet is registered first, with `fractal data register DIR`)"
    return FractalError(f"no prepared data set at {store}: build it with `dvc repro`{hint}")


def _nearest_data_set(folder: Path) -> str | None:
    """The name of a prepared data set beside `folder` that is nearly its name."""
    known = [file.parent.name for file in folder.parent.glob(f"*/{MANIFEST_NAME}")]
    return next(iter(difflib.get_close_matches(folder.name, known, n=1)), None)


def fit_size(size: Size, manifest: Manifest) -> Size:
    """Return `size` with the data set's class names in its model configuration. Raises FractalError
    when the size has another image size or number of classes than the data set."""
    for quantity, ours, theirs in (
        ("image size", size.model.image_size, manifest.resolution),
        ("num_classes", size.model.num_classes, len(manifest.class_names)),
    ):
        if ours != theirs:
            raise FractalError(
                f"size {size.name} has {quantity} {ours}, its data set {manifest.dataset} has "
                f"{theirs}: change models.{size.name} or training.{size.name}.dataset"
            )
    return size.with_class_names(manifest.class_names)
