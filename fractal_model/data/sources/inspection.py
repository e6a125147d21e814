"""Looking at a folder: which form its images are in, how many there are and what is missing.

Decided here: the name says whether it is ImageNet, whose classes and counts are known. Class
folders and parquet files under another name are read as anybody's own, also where classes are
called by WordNet ids, as in ImageNet-100.
"""

from pathlib import Path
from typing import Annotated, Literal

import pyarrow.compute as pc
from pydantic import Field

from fractal_model.common.errors import FractalError
from fractal_model.common.strict import StrictModel
from fractal_model.config.data import IMAGENET
from fractal_model.data.sources import imagenet
from fractal_model.data.sources.archives import TRAIN_ARCHIVE, VALIDATION_ARCHIVE, list_archives
from fractal_model.data.sources.folders import (
    has_class_folders,
    list_folder,
    list_imagenet_tree,
    require_no_validation_folder,
)
from fractal_model.data.sources.listing import TRAIN, VALIDATION, Listing, Progress, RefusedFile
from fractal_model.data.sources.parquet import list_parquet, parquet_files

_NAMED = 3  # of a long list

Kind = Literal["ImageNet archives", "ImageNet tree", "ImageNet parquet", "parquet", "folder"]


class Source(StrictModel):
    """What was found; equal images give an equal description."""

    format_version: Literal[1] = 1
    name: str
    kind: Kind
    classes: int
    images: dict[str, int]
    """By split."""
    refused: int
    """Files that cannot be used, found while listing."""
    missing: tuple[str, ...]
    """What was expected and is not there: parts of ImageNet, images of a class."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    listing_checksum: str


def inspect(root: Path, name: str, holdout: float, progress: Progress) -> tuple[Source, Listing]:
    """What images there are in `root`; `holdout` is the share of anybody's own that validate.

    Raises FractalError when nothing usable is found, and for a holdout where there are validation
    images already.
    """
    kind = _kind(root, name)
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
    else:
        builder = list_folder(root, progress)
    if holdout:
        builder.hold_out(holdout)
    listing = builder.build(names, in_order=in_order)
    images = {split: listing.count(split) for split in (TRAIN, VALIDATION)}
    _require_both(root, kind, images, companions, listing.refused)
    source = Source(
        name=name,
        kind=kind,
        classes=len(listing.class_ids),
        images=images,
        refused=len(listing.refused),
        missing=_missing(name, kind, listing, images, companions),
        holdout=holdout,
        listing_checksum=listing.checksum,
    )
    return source, listing


def _kind(root: Path, name: str) -> Kind:
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
            f"validation-*.parquet; for images of your own give a name and a resolution"
        )
    return "folder"


def _require_no_validation(root: Path, kind: Kind, holdout: float) -> None:
    """FractalError: a share cannot be held out, as there are validation images, or may be."""
    if kind == "folder":
        require_no_validation_folder(root, holdout)
    elif kind != "parquet" or VALIDATION in parquet_files(root):
        raise FractalError(
            f"{holdout} of the images are to be held out, but {root} is {kind}, which has "
            f"validation images of its own: hold none out",
            setting="holdout",
        )


def _require_both(
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
    }[kind]
    no_truth = ""
    if kind in ("ImageNet archives", "ImageNet tree") and not companions.validation:
        no_truth = ", the ground truth of its validation images is not there either"
    of_these = [entry for entry in refused if not images[entry.split]]
    why = ""
    if of_these:
        first = of_these[0]
        why = f" ({len(of_these):,} refused, first {first.split}/{first.file}: {first.reason})"
    raise FractalError(f"{root} has no {absent} images that can be used{why}{no_truth}: {way_out}")


def _missing(
    name: str,
    kind: Kind,
    listing: Listing,
    images: dict[str, int],
    companions: imagenet.Companions,
) -> tuple[str, ...]:
    missing = [f"images of {unused} that can be used" for unused in listing.unused[:_NAMED]]
    if len(listing.unused) > _NAMED:
        missing.append(f"images of more classes ({len(listing.unused) - _NAMED:,})")
    if name != IMAGENET:
        return tuple(missing)
    found = pc.count_distinct(listing.images["label"]).as_py()
    if found < imagenet.CLASSES:
        missing.append(f"{imagenet.CLASSES - found} of {imagenet.CLASSES} classes")
    for split, expected in imagenet.IMAGES.items():
        if images[split] < expected:
            missing.append(f"{expected - images[split]:,} of {expected:,} {split} images")
    if not companions.names and kind != "ImageNet parquet":
        missing.append("the classes' names (devkit)")
    return tuple(missing)
