"""Registered sources: what was found, written down for DVC; where it is, for this machine alone.

    <data>/registered.yaml                what `dvc repro` builds from sources   in git
    <data>/sources/<name>.json            what a source has                      in git
    <data>/sources/<name>.location        where it is on this machine            not in git
    <data>/sources/<name>.listing.parquet every image                            not in git

Decided here: what is in git follows from the images alone, so that a colleague who has the same
images elsewhere, or who pulls the prepared ones, finds nothing to build.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import pyarrow.compute as pc
import yaml
from pydantic import Field, ValidationError

from fractal_model.config import StrictModel
from fractal_model.data.sources import imagenet
from fractal_model.data.sources.archives import TRAIN_ARCHIVE, VALIDATION_ARCHIVE, list_archives
from fractal_model.data.sources.folders import class_folders, list_folder, list_imagenet_tree
from fractal_model.data.sources.listing import TRAIN, VALIDATION, Listing
from fractal_model.data.sources.parquet import list_parquet, parquet_files
from fractal_model.errors import FractalError, one_line

IMAGENET = "imagenet"
IMAGENET_RESOLUTIONS = (64, 256)
REGISTERED_FILE = "registered.yaml"
_NAME = re.compile(r"[a-z][a-z0-9-]*")
_HEAD = "# Data sets that `dvc repro` builds beside digits; `fractal data register` writes this.\n"

Kind = Literal["ImageNet archives", "ImageNet tree", "ImageNet parquet", "folder"]
Progress = Callable[[int], None]


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
    """Parts of ImageNet that were expected and are not there."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    listing_checksum: str


class RegisteredStatistics(StrictModel):
    """Somebody else's statistics that samples are compared with."""

    file: str
    sha256: str


class Registered(StrictModel):
    """A data set that `dvc repro` builds."""

    source: str
    resolution: Annotated[int, Field(ge=1)]
    description: str
    """The source's description, relative to the settings' folder: what DVC looks at."""
    statistics: RegisteredStatistics | None = None
    """Instead of those of the prepared images."""


def register(
    root: Path,
    data: Path,
    *,
    name: str = IMAGENET,
    resolutions: tuple[int, ...] = (),
    holdout: float = 0.0,
    progress: Progress = lambda done: None,
) -> tuple[Source, Listing]:
    """Lists the images in `root` and writes the files above; registering again replaces.

    `holdout` is the share of a folder of classes that becomes the validation split.
    Raises FractalError when nothing usable is found, and for a bad name or resolution.
    """
    datasets = _dataset_names(data, name, resolutions)
    root = _require_folder(root)
    source, listing = _inspect(root, name, holdout, progress)
    folder = data / "sources"
    folder.mkdir(parents=True, exist_ok=True)
    listing.write(listing_file(data, name))
    _write(folder / f"{name}.location", f"{root}\n")
    _write(folder / f"{name}.json", source.model_dump_json(indent=2) + "\n")
    before = registered(data)
    update_registered(
        data,
        {
            dataset: Registered(
                source=name,
                resolution=resolution,
                description=f"{data.name}/sources/{name}.json",
                statistics=before[dataset].statistics if dataset in before else None,
            )
            for dataset, resolution in datasets.items()
        },
        replacing=name,
    )
    return source, listing


def update_registered(
    data: Path, entries: dict[str, Registered], *, replacing: str | None = None
) -> None:
    """Writes these entries beside those there are, without the older ones of `replacing`."""
    kept = {k: v for k, v in registered(data).items() if v.source != replacing} | entries
    content = {"registered": {k: kept[k].model_dump() for k in sorted(kept)}}
    _write(data / REGISTERED_FILE, _HEAD + yaml.safe_dump(content, sort_keys=False))


def registered(data: Path) -> dict[str, Registered]:
    """Data sets by name. Raises FractalError when the file is damaged."""
    file = data / REGISTERED_FILE
    try:
        content = yaml.safe_load(file.read_text())
        return {k: Registered.model_validate(v) for k, v in (content["registered"] or {}).items()}
    except FileNotFoundError:
        return {}
    except (OSError, yaml.YAMLError, TypeError, KeyError, AttributeError, ValidationError) as error:
        raise FractalError(
            f"{file} is damaged ({one_line(error)}): restore it, or write 'registered: {{}}' into "
            f"it and register again"
        ) from error


def load_source(data: Path, name: str) -> tuple[Source, Path, Listing]:
    """The description, the folder and the listing of a registered source.

    Raises FractalError when it is not registered here, or is not what it was.
    """
    folder = data / "sources"
    try:
        source = Source.model_validate_json((folder / f"{name}.json").read_text())
        root = Path((folder / f"{name}.location").read_text().strip())
    except FileNotFoundError as error:
        raise FractalError(
            f"the source {name!r} is not registered on this machine: run `fractal data register "
            f"DIR --name {name}` with the folder that has its images, or `dvc pull` what was built"
        ) from error
    except (OSError, ValidationError) as error:
        raise FractalError(
            f"{folder / name}.json is damaged ({one_line(error)}): register the source again"
        ) from error
    if not root.is_dir():
        raise FractalError(
            f"the images of {name!r} were registered in {root}, which is not there now: make it "
            f"available, or register them where they are, `fractal data register DIR --name {name}`"
        )
    try:
        listing = Listing.read(listing_file(data, name))
    except FileNotFoundError:
        _, listing = _inspect(root, name, source.holdout, lambda done: None)
        if listing.checksum != source.listing_checksum:
            raise FractalError(
                f"{root} has other images than when {name!r} was registered: run "
                f"`fractal data register {root} --name {name}` again"
            ) from None
        listing.write(listing_file(data, name))
    return source, root, listing


def listing_file(data: Path, name: str) -> Path:
    return data / "sources" / f"{name}.listing.parquet"


def _inspect(root: Path, name: str, holdout: float, progress: Progress) -> tuple[Source, Listing]:
    kind = _kind(root, name)
    companions = imagenet.Companions()
    if kind in ("ImageNet archives", "ImageNet tree"):
        companions = imagenet.find_companions(root)
    names, in_order = companions.names, kind == "ImageNet parquet"
    if kind == "ImageNet archives":
        builder = list_archives(root, companions, progress)
    elif kind == "ImageNet tree":
        builder = list_imagenet_tree(root, companions, progress)
    elif in_order:
        builder, names = list_parquet(root, progress)
    else:
        builder = list_folder(root, holdout, progress)
    listing = builder.build(names, in_order=in_order)
    images = {split: listing.count(split) for split in (TRAIN, VALIDATION)}
    _require_both(root, kind, images, companions)
    source = Source(
        name=name,
        kind=kind,
        classes=len(listing.class_ids),
        images=images,
        refused=len(listing.refused),
        missing=_missing(kind, listing, images, companions),
        holdout=holdout,
        listing_checksum=listing.checksum,
    )
    return source, listing


def _kind(root: Path, name: str) -> Kind:
    if (root / TRAIN_ARCHIVE).is_file() or (root / VALIDATION_ARCHIVE).is_file():
        return "ImageNet archives"
    if parquet_files(root):
        return "ImageNet parquet"
    if class_folders(root).get(TRAIN):
        return "ImageNet tree"
    if name == IMAGENET:
        raise FractalError(
            f"{root} does not look like ImageNet: expected {TRAIN_ARCHIVE} and "
            f"{VALIDATION_ARCHIVE}, or train/<wnid>/ and val/, or train-*.parquet and "
            f"validation-*.parquet; for images of your own give --name and --resolution"
        )
    return "folder"


def _require_both(
    root: Path, kind: Kind, images: dict[str, int], companions: imagenet.Companions
) -> None:
    if all(images.values()):
        return
    absent = " and ".join(split for split, count in images.items() if not count)
    way_out = {
        "ImageNet archives": f"put {TRAIN_ARCHIVE}, {VALIDATION_ARCHIVE} and the devkit there",
        "ImageNet tree": "put train/<wnid>/ and val/ there, and for a flat val/ the devkit",
        "ImageNet parquet": "put train-*.parquet and validation-*.parquet there",
        "folder": "expected train/<class>/ and validation/<class>/, or <class>/ with --holdout 0.1",
    }[kind]
    no_truth = ""
    if kind in ("ImageNet archives", "ImageNet tree") and not companions.validation:
        no_truth = ", the ground truth of its validation images is not there either"
    raise FractalError(f"{root} has no {absent} images that can be used{no_truth}: {way_out}")


def _missing(
    kind: Kind, listing: Listing, images: dict[str, int], companions: imagenet.Companions
) -> tuple[str, ...]:
    if kind == "folder":
        return ()
    missing = []
    found = pc.count_distinct(listing.images["label"]).as_py()
    if found < imagenet.CLASSES:
        missing.append(f"{imagenet.CLASSES - found} of {imagenet.CLASSES} classes")
    for split, expected in imagenet.IMAGES.items():
        if images[split] < expected:
            missing.append(f"{expected - images[split]:,} of {expected:,} {split} images")
    if not companions.names and kind != "ImageNet parquet":
        missing.append("the classes' names (devkit)")
    return tuple(missing)


def _dataset_names(data: Path, name: str, resolutions: tuple[int, ...]) -> dict[str, int]:
    """Names of the data sets to build, and their resolutions."""
    if not _NAME.fullmatch(name):
        raise FractalError(
            f"the name {name!r} cannot be used: expected small letters, digits and -, first a "
            f"letter, such as flowers"
        )
    if not resolutions and name != IMAGENET:
        raise FractalError(f"say at which size to build {name!r}: --resolution 64, for example")
    resolutions = resolutions or IMAGENET_RESOLUTIONS
    for resolution in resolutions:
        if not 2 <= resolution <= 4096:
            raise FractalError(f"--resolution is {resolution}, expected 2 to 4096 pixels")
    numbered = name == IMAGENET or len(resolutions) > 1
    names = {f"{name}{size}" if numbered else name: size for size in resolutions}
    taken = {"digits": "the embedded data set"}
    taken |= {k: f"the source {v.source}" for k, v in registered(data).items() if v.source != name}
    for dataset in names:
        if dataset in taken:
            raise FractalError(f"{dataset!r} is {taken[dataset]} already: choose another --name")
    return names


def _require_folder(root: Path) -> Path:
    if not root.is_dir():
        found = "is a file" if root.is_file() else "does not exist"
        raise FractalError(f"{root} {found}: give the folder that has the images")
    return root.resolve()


def _write(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text)
    partial.replace(file)
