"""Inspect a folder: how its images are stored, how many there are and what is missing.

Decided here: class folders and parquet files are read as ImageNet, whose classes and counts are
known, only if they are registered under the name `imagenet`. Under another name they are a user's
own images, even if the classes have WordNet ids as names, as in ImageNet-100.
"""

from pathlib import Path
from typing import Annotated, Literal

import pyarrow.compute as pc
from pydantic import Field

from fractal_model.common.errors import FractalError
from fractal_model.common.plurals import count_of
from fractal_model.common.strict import StrictModel
from fractal_model.config.data import IMAGENET, OPENMOJI
from fractal_model.data.sources import imagenet
from fractal_model.data.sources.archives import TRAIN_ARCHIVE, VALIDATION_ARCHIVE, list_archives
from fractal_model.data.sources.folders import (
    has_class_folders,
    list_folder,
    list_imagenet_tree,
    require_no_validation_folder,
)
from fractal_model.data.sources.listing import TRAIN, VALIDATION, Listing, Progress, RefusedFile
from fractal_model.data.sources.openmoji import list_openmoji
from fractal_model.data.sources.parquet import list_parquet, parquet_files

_NAMED = 3  # At most this many classes without images are named.

Kind = Literal[
    "ImageNet archives", "ImageNet tree", "ImageNet parquet", "parquet", "folder", "OpenMoji"
]


class Source(StrictModel):
    """Description of a source. Equal images give equal descriptions."""

    format_version: Literal[1] = 1
    name: str
    kind: Kind
    classes: int
    images: dict[str, int]
    """Number of images by split."""
    refused: int
    """Number of files that the listing refused."""
    missing: tuple[str, ...]
    """What the source lacks, in words: parts of ImageNet, or usable images of a class."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training images that became the validation split; 0 if the source has validation
    images of its own."""
    listing_checksum: str


def inspect(root: Path, name: str, holdout: float, progress: Progress) -> tuple[Source, Listing]:
    """List the images in `root`. Return the description of the source `name` and the listing.
    `holdout` is the share of a user's own images that becomes the validation split, or 0. Raises
    FractalError when a split has no usable image, or when `holdout` is above 0 and the source has
    validation images of its own."""
    kind = _find_kind(root, name)
    if holdout:
        _require_no_validation(root, kind, holdout)
    has_companions = kind in ("ImageNet archives", "ImageNet tree")
    companions = imagenet.find_companions(root) if has_companions else imagenet.Companions()
    names, in_order = companions.names, kind in ("ImageNet parquet", "parquet")
    if kind == "ImageNet archives":
        builder = list_archives(root, companions, progress)
    elif kind == "ImageNet tree":
        builder = list_imagenet_tree(root, companions, progress)
    elif in_order:
        builder, names = list_parquet(root, progress, imagenet=name == IMAGENET)
    elif kind == "OpenMoji":
        builder = list_openmoji(root, progress)
    else:
        builder = list_folder(root, progress)
    if holdout:
        builder.hold_out(holdout)
    listing = builder.build(names, in_order=in_order)
    images = {split: listing.count(split) for split in (TRAIN, VALIDATION)}
    _require_both_splits(root, kind, images, companions, listing.refused)
    source = Source(
        name=name,
        kind=kind,
        classes=len(listing.class_ids),
        images=images,
        refused=len(listing.refused),
        missing=_describe_missing(name, kind, listing, images, companions),
        holdout=holdout,
        listing_checksum=listing.checksum,
    )
    return source, listing


def _find_kind(root: Path, name: str) -> Kind:
    if name == OPENMOJI:
        return "OpenMoji"
    if (root / TRAIN_ARCHIVE).is_file() or (root / VALIDATION_ARCHIVE).is_file():
        return "ImageNet archives"
    if parquet_files(root):
        return "ImageNet parquet" if name == IMAGENET else "parquet"
    if name == IMAGENET:
        if has_class_folders(root):
            return "ImageNet tree"
        raise FractalError(
            f"{root} does not look like ImageNet: expected {TRAIN_ARCHIVE} and "
            f"{VALIDATION_ARCHIVE}, or train/<wnid>/ and val/, or train-*.parquet and "
            f"validation-*.parquet; to register other images, give a name and a resolution"
        )
    return "folder"


def _require_no_validation(root: Path, kind: Kind, holdout: float) -> None:
    """Raise FractalError if the source is ImageNet, or has a place for validation images."""
    if kind == "folder":
        require_no_validation_folder(root, holdout)
    elif kind != "parquet" or VALIDATION in parquet_files(root):
        raise FractalError(
            f"{holdout} of the images are to be held out, but {root} is {kind}, which has "
            f"validation images of its own: use no holdout",
            setting="holdout",
        )


def _require_both_splits(
    root: Path,
    kind: Kind,
    images: dict[str, int],
    companions: imagenet.Companions,
    refused: tuple[RefusedFile, ...],
) -> None:
    if all(images.values()):
        return
    absent = " and ".join(split for split, count in images.items() if not count)
    way_out = {
        "ImageNet archives": f"put {TRAIN_ARCHIVE}, {VALIDATION_ARCHIVE} and the devkit there",
        "ImageNet tree": "put train/<wnid>/ and val/ there, and for a flat val/ the devkit",
        "ImageNet parquet": "put train-*.parquet and validation-*.parquet there",
        "parquet": "put train-*.parquet and validation-*.parquet there, or only the first with "
        "holdout 0.1",
        "folder": "expected train/<class>/ and validation/<class>/, or <class>/ with holdout 0.1",
        "OpenMoji": "give the folder of all its pictures",
    }[kind]
    no_truth = ""
    if kind in ("ImageNet archives", "ImageNet tree") and not companions.validation:
        no_truth = ", the ground truth of its validation images is not there either"
    in_absent = [entry for entry in refused if not images[entry.split]]
    refusals = ""
    if in_absent:
        entry = in_absent[0]
        example = f"{entry.split}/{entry.file}: {entry.reason}"
        refusals = f" ({len(in_absent):,} refused, first {example})"
    raise FractalError(f"{root} has no {absent} images to use{refusals}{no_truth}: {way_out}")


def _describe_missing(
    name: str,
    kind: Kind,
    listing: Listing,
    images: dict[str, int],
    companions: imagenet.Companions,
) -> tuple[str, ...]:
    missing = [f"images of {unused} that can be used" for unused in listing.unused[:_NAMED]]
    if len(listing.unused) > _NAMED:
        more = count_of(len(listing.unused) - _NAMED, "more class", "more classes")
        missing.append(f"images of {more}")
    if name != IMAGENET:
        return tuple(missing)
    classes = pc.count_distinct(listing.images["label"]).as_py()
    if classes < imagenet.CLASSES:
        missing.append(f"{imagenet.CLASSES - classes} of {imagenet.CLASSES} classes")
    for split, expected in imagenet.IMAGES.items():
        if images[split] < expected:
            missing.append(f"{expected - images[split]:,} of {expected:,} {split} images")
    if not companions.names and kind != "ImageNet parquet":
        missing.append("the classes' names (devkit)")
    return tuple(missing)
