"""Inspect a place: how its images are stored, how many there are and what is missing.

Decided here: class folders and parquet files are read as ImageNet, whose classes and counts are
known, only if they are registered under the name `imagenet`. Under another name they are a user's
own images, even if the classes have WordNet ids as names, as in ImageNet-100.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import pyarrow.compute as pc
from pydantic import Field

from fractal_model.common.errors import FractalError
from fractal_model.common.plurals import count_of
from fractal_model.common.strict import StrictModel
from fractal_model.config.data import IMAGENET, OPENMOJI
from fractal_model.data.decoding import BACKGROUND, WHITE
from fractal_model.data.fitting import CROP, Fit
from fractal_model.data.sources import imagenet
from fractal_model.data.sources.archives import TRAIN_ARCHIVE, VALIDATION_ARCHIVE, list_archives
from fractal_model.data.sources.folders import (
    has_class_folders,
    list_folder,
    list_imagenet_tree,
    require_no_validation_folder,
)
from fractal_model.data.sources.listing import (
    TRAIN,
    VALIDATION,
    Listing,
    ListingBuilder,
    Progress,
    RefusedFile,
)
from fractal_model.data.sources.openmoji import list_openmoji
from fractal_model.data.sources.parquet import list_parquet, parquet_files
from fractal_model.data.sources.picture_tables import find_tables, list_tables
from fractal_model.data.sources.places import Place

_NAMED = 3  # At most this many classes without images are named.

Kind = Literal[
    "ImageNet archives",
    "ImageNet tree",
    "ImageNet parquet",
    "OpenMoji",
    "parquet",
    "table",
    "hub",
    "folder",
]

# Fields that are not used are not written, so that a description without them stays what it was.
Holdout = Annotated[float, Field(ge=0, lt=1)]
Label = Annotated[str | None, Field(exclude_if=lambda value: value is None)]
Background = Annotated[
    str, Field(pattern=f"^({BACKGROUND})$", exclude_if=lambda value: value == WHITE)
]
SquareFit = Annotated[Fit, Field(exclude_if=lambda value: value == CROP)]
ClassNames = Annotated[tuple[str, ...], Field(exclude_if=lambda value: not value)]


class Options(StrictModel):
    """What the user chose when a source was registered."""

    holdout: Holdout = 0.0
    """Share of the training images that becomes the validation split; 0 if the source has
    validation images of its own."""
    label: Label = None
    """Column of a table, or feature of a data set of the hub, with the classes; None: the usual
    one."""
    background: Background = WHITE
    """Colour on which transparent pixels are laid, and of the bars of `pad`."""
    fit: SquareFit = CROP
    """How pictures that are no squares become squares."""


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
    holdout: Holdout = 0.0
    label: Label = None
    background: Background = WHITE
    fit: SquareFit = CROP
    class_names: ClassNames = ()
    """Class names in the order of their numbers; empty for ImageNet."""
    listing_checksum: str

    @property
    def options(self) -> Options:
        """The options with which the source was registered."""
        return Options(**{name: getattr(self, name) for name in Options.model_fields})


def inspect(
    place: Place, name: str, options: Options, earlier: tuple[str, ...], progress: Progress
) -> tuple[Source, Listing]:
    """List the images at `place`. Return the description of the source `name` and the listing.
    `earlier` are the class names of an earlier registration, which keep their numbers. Raises
    FractalError when a split has no usable image, when a label is named and the source has no
    columns, or when a share is to be held out and the source has validation images of its own."""
    kind = _find_kind(place, name, options.label)
    if options.label is not None and kind not in ("table", "hub"):
        raise FractalError(
            f"{place} has no table of pictures with the column {options.label!r}: name a column "
            f"that it has, or leave it out",
            setting="label",
        )
    if options.holdout:
        _require_no_validation(place.root, kind, options.holdout)
    has_companions = kind in ("ImageNet archives", "ImageNet tree")
    companions = imagenet.find_companions(place.root) if has_companions else imagenet.Companions()
    builder = _list_images(place, kind, name, companions, options.label, progress)
    if options.holdout:
        if builder.has_validation():
            raise _validation_exists_error(place, kind, options.holdout)
        builder.hold_out(options.holdout)
        if len(builder) and not builder.has_validation():
            raise _nothing_held_out_error(place, builder.refused)
    listing = builder.build(earlier)
    images = {split: listing.count(split) for split in (TRAIN, VALIDATION)}
    _require_both_splits(place, kind, images, companions, listing.refused)
    source = Source(
        name=name,
        kind=kind,
        classes=len(listing.class_ids),
        images=images,
        refused=len(listing.refused),
        missing=_describe_missing(name, kind, listing, images, companions),
        class_names=() if name == IMAGENET else listing.class_names,
        listing_checksum=listing.checksum,
        **options.model_dump(),
    )
    return source, listing


def _list_images(
    place: Place,
    kind: Kind,
    name: str,
    companions: imagenet.Companions,
    label: str | None,
    progress: Progress,
) -> ListingBuilder:
    match kind:
        case "ImageNet archives":
            return list_archives(place.root, companions, progress)
        case "ImageNet tree":
            return list_imagenet_tree(place.root, companions, progress)
        case "ImageNet parquet" | "parquet":
            return list_parquet(place.root, progress, imagenet=name == IMAGENET)
        case "OpenMoji":
            return list_openmoji(place.root, progress)
        case "table":
            return list_tables(place.root, _tables(place, label), label, progress)
        case "hub":
            from fractal_model.data.sources.hub_images import list_hub  # Its libraries load slowly.

            return list_hub(place, name, label, progress)
    return list_folder(place.root, name, progress)


def _tables(place: Place, label: str | None) -> dict[str, Path]:
    """Return the tables of pictures at `place` by split."""
    return {TRAIN: place.table} if place.table else find_tables(place.root, label)


def _find_kind(place: Place, name: str, label: str | None) -> Kind:
    if name == OPENMOJI:
        return "OpenMoji"
    root, is_hub = place.root, place.hub_name is not None
    if not is_hub and any((root / file).is_file() for file in (TRAIN_ARCHIVE, VALIDATION_ARCHIVE)):
        return "ImageNet archives"
    if name != IMAGENET:
        if is_hub:
            return "hub"
        if _tables(place, label):
            return "table"
        return "parquet" if parquet_files(root) else "folder"
    if not is_hub and parquet_files(root):
        return "ImageNet parquet"
    if not is_hub and has_class_folders(root):
        return "ImageNet tree"
    raise FractalError(
        f"{place} does not look like ImageNet: expected {TRAIN_ARCHIVE} and {VALIDATION_ARCHIVE}, "
        f"or train/<wnid>/ and val/, or train-*.parquet and validation-*.parquet; to register "
        f"other images, give a name and a resolution"
    )


def _require_no_validation(root: Path, kind: Kind, holdout: float) -> None:
    """Raise FractalError if the source is ImageNet, or has a place for validation images."""
    if kind == "folder":
        require_no_validation_folder(root, holdout)
    elif kind.startswith("ImageNet") or (kind == "parquet" and VALIDATION in parquet_files(root)):
        raise _validation_exists_error(root, kind, holdout)


def _validation_exists_error(place: Path | Place, kind: Kind, holdout: float) -> FractalError:
    return FractalError(
        f"{holdout} of the images are to be held out, but {place} is {kind}, which has "
        f"validation images of its own: use no holdout",
        setting="holdout",
    )


def _nothing_held_out_error(place: Place, refused: Sequence[RefusedFile]) -> FractalError:
    refusals = f" ({_describe_refused(refused)})" if refused else ""
    return FractalError(
        f"{place} has one usable image of each class{refusals}, and the last one of a class is "
        f"never held out: add images",
        setting="holdout",
    )


def _describe_refused(refused: Sequence[RefusedFile]) -> str:
    first = refused[0]
    return f"{len(refused):,} refused, first {first.split}/{first.file}: {first.reason}"


def _require_both_splits(
    place: Place,
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
        "OpenMoji": "give the folder of all its pictures",
        "table": "expected rows of both splits, or of train with holdout 0.1",
        "hub": "expected both splits, or train with holdout 0.1",
        "folder": "expected train/<class>/ and validation/<class>/, or <class>/ or images with "
        "holdout 0.1",
    }[kind]
    no_truth = ""
    if kind in ("ImageNet archives", "ImageNet tree") and not companions.validation:
        no_truth = ", the ground truth of its validation images is not there either"
    in_absent = [entry for entry in refused if not images[entry.split]]
    refusals = ""
    if in_absent:
        refusals = f" ({_describe_refused(in_absent)})"
    raise FractalError(f"{place} has no {absent} images to use{refusals}{no_truth}: {way_out}")


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
