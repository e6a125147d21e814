"""Registered sources: what was found, written down for DVC; where it is, for this machine alone.

    <data>/registered.yaml                what `dvc repro` builds from sources   in git
    <data>/sources/<name>.json            what a source has                      in git
    <data>/sources/<name>.location        where it is on this machine            not in git
    <data>/sources/<name>.listing.parquet every image                            not in git
    <data>/sources/<data set>.statistics.location  registered statistics         not in git

Decided here: what is in git follows from the images alone, so that a colleague who has the same
images elsewhere, or who pulls the prepared ones, finds nothing to build.
"""

import re
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.files import atomic_file
from fractal_model.common.strict import StrictModel
from fractal_model.common.strict_yaml import NotYAMLError, read_yaml
from fractal_model.common.validation import describe
from fractal_model.config.data import IMAGENET, IMAGENET_SIDES
from fractal_model.data.manifest import MANIFEST_NAME, read_manifest
from fractal_model.data.sources.inspection import Source, inspect
from fractal_model.data.sources.listing import Listing, Progress, printable_name

REGISTERED_FILE = "registered.yaml"
_NAME = re.compile(r"[a-z][a-z0-9-]*")
_RESERVED_ENDINGS = ("-report", "-reference", "-quarantined")
_HEAD = "# Data sets that `dvc repro` builds beside digits; `fractal data register` writes this.\n"


class RegisteredStatistics(StrictModel):
    """Somebody else's statistics that samples are compared with."""

    file: Annotated[str, Field(pattern=r"^[^/\\]+$")]
    """Its name. Where it is on this machine, `statistics_file` knows."""
    sha256: str


class Registered(StrictModel):
    """A data set that `dvc repro` builds."""

    source: str
    resolution: Annotated[int, Field(ge=1)]
    description: str
    """The source's description, relative to the settings' folder: what DVC looks at."""
    statistics: RegisteredStatistics | None = None
    """Instead of those of the prepared images."""


class RegisteredFile(StrictModel):
    """What `registered.yaml` holds."""

    registered: dict[str, Registered] | None
    """By the name of the data set."""


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

    `holdout` is the share of anybody's own images that becomes the validation split.
    Raises FractalError when nothing usable is found, and for a bad name or resolution.
    """
    datasets = _dataset_names(data, name, resolutions)
    root = _require_folder(root)
    source, listing = inspect(root, name, holdout, progress)
    folder = data / "sources"
    folder.mkdir(parents=True, exist_ok=True)
    listing.write(listing_file(data, name))
    _write(_location(data, name), f"{root}\n")
    _write(folder / f"{name}.json", source.model_dump_json(indent=2) + "\n")
    before = read_registered(data)
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
    kept = {k: v for k, v in read_registered(data).items() if v.source != replacing} | entries
    content = {"registered": {k: kept[k].model_dump() for k in sorted(kept)}}
    _write(data / REGISTERED_FILE, _HEAD + yaml.safe_dump(content, sort_keys=False))


def read_registered(data: Path) -> dict[str, Registered]:
    """Data sets by name. Raises FractalError when the file is damaged."""
    file = data / REGISTERED_FILE
    try:
        return RegisteredFile.model_validate(read_yaml(file)).registered or {}
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        reason = describe(error, RegisteredFile)
    except (OSError, NotYAMLError) as error:
        reason = one_line(error)
    raise FractalError(
        f"{file} is damaged ({reason}): restore it, or write 'registered: {{}}' into it and "
        f"register again"
    )


def load_description(data: Path, name: str) -> Source:
    """What a registered source has. Raises FractalError when it is not registered, or damaged."""
    file = data / "sources" / f"{name}.json"
    try:
        return Source.model_validate_json(file.read_text())
    except FileNotFoundError as error:
        raise _not_here(name) from error
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise FractalError(
            f"{file} is damaged ({one_line(error)}): register the source again"
        ) from error


def load_source(data: Path, name: str) -> tuple[Source, Path, Listing]:
    """The description, the folder and the listing of a registered source.

    Raises FractalError when it is not registered here, or is not what it was.
    """
    source = load_description(data, name)
    root = _read_location(data, name)
    if root is None:
        raise _not_here(name)
    if not root.is_dir():
        raise FractalError(
            f"the images of {name!r} were registered in {root}, which is not there now: make it "
            f"available, or register them under that name where they are (`fractal data register`)"
        )
    file = listing_file(data, name)
    listing = Listing.read(file) if file.is_file() else None
    if listing is None or listing.checksum != source.listing_checksum:
        # The description may have come with git, and be of what the folder has by now.
        _, listing = inspect(root, name, source.holdout, lambda done: None)
        if listing.checksum != source.listing_checksum:
            raise FractalError(
                f"{root} has other images than when {name!r} was registered, or an earlier "
                f"version read them otherwise: register it again "
                f"under that name (`fractal data register`), or restore the images, or "
                f"{data / 'sources' / name}.json, which describes them"
            )
        listing.write(file)
    return source, root, listing


def find_renumbered_class(data: Path, dataset: str, names: tuple[str, ...]) -> str | None:
    """Which class of the prepared data set, if there is one, gets another number with `names`."""
    try:
        before = read_manifest(data / dataset).class_names
    except FractalError:  # not prepared, or not readable
        return None
    for number, name in enumerate(names):
        if name in before and before.index(name) != number:
            return f"{name!r} was number {before.index(name)} and becomes {number}"
    return None


def _not_here(name: str) -> FractalError:
    return FractalError(
        f"the source {name!r} is not registered on this machine: register the "
        f"folder that has its images (`fractal data register`), or `dvc pull` what was built"
    )


def register_statistics(data: Path, dataset: str, file: Path | None, sha256: str = "") -> None:
    """Compares samples of a registered data set with the statistics in `file`, with this checksum;
    with our own again where `file` is None."""
    statistics, location = None, _location(data, f"{dataset}.statistics")
    if file is None:
        location.unlink(missing_ok=True)
    else:
        statistics = RegisteredStatistics(file=file.name, sha256=sha256)
        _write(location, f"{file.resolve()}\n")
    entry = read_registered(data)[dataset].model_copy(update={"statistics": statistics})
    update_registered(data, {dataset: entry})


def statistics_file(data: Path, dataset: str) -> Path | None:
    """Where the registered statistics are on this machine, if that is known."""
    return _read_location(data, f"{dataset}.statistics")


def _location(data: Path, name: str) -> Path:
    return data / "sources" / f"{name}.location"


def _read_location(data: Path, name: str) -> Path | None:
    file = _location(data, name)
    return Path(file.read_text().strip()) if file.is_file() else None


def listing_file(data: Path, name: str) -> Path:
    return data / "sources" / f"{name}.listing.parquet"


def _dataset_names(data: Path, name: str, resolutions: tuple[int, ...]) -> dict[str, int]:
    """Names of the data sets to build, and their resolutions."""
    if not _NAME.fullmatch(name):
        raise FractalError(
            f"the name {name!r} cannot be used: expected small letters, digits and -, first a "
            f"letter, such as flowers"
        )
    if not resolutions and name != IMAGENET:
        raise FractalError(
            f"say at which resolution to build {name!r}, 64 for example", setting="resolution"
        )
    resolutions = resolutions or tuple(IMAGENET_SIDES.values())
    for resolution in resolutions:
        if not 2 <= resolution <= 4096:
            raise FractalError(f"a resolution of {resolution}, expected 2 to 4096 pixels")
    numbered = name == IMAGENET or len(resolutions) > 1
    names = {f"{name}{size}" if numbered else name: size for size in resolutions}
    taken = {"digits": "the embedded data set", "sources": "the folder of the sources"}
    others = {k: v.source for k, v in read_registered(data).items() if v.source != name}
    taken |= {k: f"the source {source}" for k, source in others.items()}
    for dataset in names:
        if dataset in taken:
            raise FractalError(f"{dataset!r} is {taken[dataset]} already: choose another name")
        if dataset.endswith(_RESERVED_ENDINGS):
            raise FractalError(
                f"{dataset!r} ends like what is built beside a data set "
                f"({', '.join(_RESERVED_ENDINGS)}): choose another name"
            )
        folder = data / dataset
        if folder.exists() and not (folder / MANIFEST_NAME).is_file():
            raise FractalError(
                f"{folder} is there and is no prepared data set, which would take its place: "
                f"choose another name, or move it away"
            )
    return names


def _require_folder(root: Path) -> Path:
    if not root.is_dir():
        found = "is a file" if root.is_file() else "does not exist"
        raise FractalError(f"{root} {found}: give the folder that has the images")
    resolved = root.resolve()
    if printable_name(str(resolved)) != str(resolved):
        raise FractalError(
            f"{printable_name(str(resolved))} is not UTF-8 or has control characters: "
            f"rename the folder"
        )
    return resolved


def _write(file: Path, text: str) -> None:
    with atomic_file(file) as partial:
        partial.write_text(text)
