"""Register sources: describe their images for DVC, and store their place for this machine.

    <data>/registered.yaml                data sets that `dvc repro` builds      in git
    <data>/sources/<name>.json            description of a source                in git
    <data>/sources/<name>.location        its place on this machine              not in git
    <data>/sources/<name>.listing.parquet listing of its images                  not in git
    <data>/sources/<data set>.statistics.location  file of its statistics        not in git

Decided here: the files in git depend on the images alone. A colleague with the same images in
another folder, or with the prepared data set from `dvc pull`, therefore has nothing to build.
"""

import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.files import atomic_file, sha256
from fractal_model.common.strict import StrictModel
from fractal_model.common.strict_yaml import NotYAMLError, read_yaml
from fractal_model.common.validation import describe
from fractal_model.config.data import IMAGENET, IMAGENET_SIDES, OPENMOJI
from fractal_model.data.decoding import WHITE, parse_background
from fractal_model.data.fitting import CROP, Fit
from fractal_model.data.manifest import MANIFEST_NAME
from fractal_model.data.sources.inspection import Options, Source, inspect
from fractal_model.data.sources.listing import Listing, Progress
from fractal_model.data.sources.places import Place, find_place

REGISTERED_FILE = "registered.yaml"
_NAME = re.compile(r"[a-z][a-z0-9-]*")
_DEFAULT_SIDES = {IMAGENET: tuple(IMAGENET_SIDES.values()), OPENMOJI: (64,)}
_RESERVED_ENDINGS = ("-report", "-reference", "-quarantined")
_HEAD = "# Data sets that `dvc repro` builds beside digits; `fractal data register` writes this.\n"


class RegisteredStatistics(StrictModel):
    """A published file of Inception statistics, with which FID compares samples."""

    file: Annotated[str, Field(pattern=r"^[^/\\]+$")]
    """Name of the file. `statistics_file` returns its path on this machine."""
    sha256: str


class Registered(StrictModel):
    """A data set that `dvc repro` builds from a registered source."""

    source: str
    resolution: Annotated[int, Field(ge=1)]
    description: str
    """Path of the source's description, relative to the folder of params.yaml. DVC depends on this
    file."""
    statistics: RegisteredStatistics | None = None
    """Published statistics that FID uses instead of those of the prepared images."""


class RegisteredFile(StrictModel):
    """The contents of `registered.yaml`."""

    registered: dict[str, Registered] | None
    """Registered data sets by name."""


def register(
    place: Path | str,
    data: Path,
    *,
    name: str = IMAGENET,
    resolutions: tuple[int, ...] = (),
    holdout: float = 0.0,
    label: str | None = None,
    background: str = WHITE,
    fit: Fit = CROP,
    progress: Progress = lambda done: None,
) -> tuple[Source, Listing]:
    """List the images at `place` and register them as the source `name`, in place of an older one.

    `place` is a folder, a table of pictures, or `hub:NAME` for the Hugging Face hub. `resolutions`
    are the sides of the data sets to build, in pixels. The other arguments are fields of `Options`.
    Classes of an older registration keep their numbers. Raises FractalError when there is no usable
    image, when a class of the older registration has none, and for a bad name, resolution or
    option.
    """
    found = find_place(place)
    datasets = _plan_datasets(data, name, resolutions)
    background = parse_background(background)
    if name == IMAGENET and (background, fit, label) != (WHITE, CROP, None):
        raise FractalError(
            "ImageNet is prepared as published, so it takes no background, fit or label: leave "
            "them out, or register it under another name"
        )
    options = Options(holdout=holdout, label=label, background=background, fit=fit)
    earlier = _earlier_class_names(data, name)
    source, listing = inspect(found, name, options, earlier, progress)
    _require_all_classes(data, name, earlier, listing.class_names)
    folder = data / "sources"
    folder.mkdir(parents=True, exist_ok=True)
    listing.write(listing_file(data, name))
    _write(_location(data, name), f"{found}\n")
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
    """Add the data sets `entries`, by name, to `registered.yaml`; they replace data sets of the
    same names. All older data sets of the source `replacing` are removed."""
    older = {k: v for k, v in read_registered(data).items() if v.source != replacing}
    content = {"registered": {k: v.model_dump() for k, v in sorted((older | entries).items())}}
    _write(data / REGISTERED_FILE, _HEAD + yaml.safe_dump(content, sort_keys=False))


def read_registered(data: Path) -> dict[str, Registered]:
    """Return the data sets in `registered.yaml` by name. FractalError: the file is damaged."""
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
    """Read the description of a source. FractalError: it is not registered, or damaged."""
    file = data / "sources" / f"{name}.json"
    try:
        return Source.model_validate_json(file.read_text())
    except FileNotFoundError as error:
        raise _not_registered_error(name) from error
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise FractalError(
            f"{file} is damaged ({one_line(error)}): register the source again"
        ) from error


def load_source(data: Path, name: str) -> tuple[Source, Path, Listing]:
    """Return the description, the folder and the listing of a registered source.
    Raises FractalError when it is not registered on this machine, or its images have changed."""
    source = load_description(data, name)
    location = _read_location(data, name)
    if location is None:
        raise _not_registered_error(name)
    place = Place(location)
    root = place.root
    if not root.is_dir() and place.hub_name is None:
        raise FractalError(
            f"the images of {name!r} were registered in {root}, which is not there now: make it "
            f"available, or register their new folder under that name (`fractal data register`)"
        )
    file = listing_file(data, name)
    listing = Listing.read(file) if file.is_file() and root.is_dir() else None
    is_hub = place.hub_name is not None
    if (
        listing is None
        or listing.checksum != source.listing_checksum
        or (is_hub and not _has_files(root, listing))
    ):
        # Git may have brought a newer description, which fits the images in the folder. Or the
        # cache of a data set of the hub was emptied, or filled by another project with a newer
        # revision of the data set.
        earlier = source.class_names
        _, listing = inspect(place, name, source.options, earlier, lambda done: None)
        if listing.checksum != source.listing_checksum:
            raise FractalError(
                f"{place} has other images than when {name!r} was registered, or an earlier "
                f"version listed them differently: register it again under that name (`fractal "
                f"data register`), or restore the images or {data / 'sources' / name}.json"
            )
        listing.write(file)
    return source, root, listing


def _has_files(root: Path, listing: Listing) -> bool:
    """True if the files with checksums in the listing of a data set of the hub are unchanged."""
    return all(
        (root / file).is_file() and sha256(root / file) == checksum
        for file, checksum in listing.files.items()
    )


def _earlier_class_names(data: Path, name: str) -> tuple[str, ...]:
    """Return the class names of an earlier registration in the order of their numbers; none for
    ImageNet, whose classes are numbered as published, and if there is no readable registration."""
    if name == IMAGENET:
        return ()
    with suppress(FractalError, FileNotFoundError):
        if names := load_description(data, name).class_names:
            return names
        return Listing.read(listing_file(data, name)).class_names  # of an earlier version
    return ()


def _require_all_classes(
    data: Path, name: str, earlier: tuple[str, ...], class_names: tuple[str, ...]
) -> None:
    for number, class_name in enumerate(earlier):
        if class_name not in class_names:
            raise FractalError(
                f"the class {class_name!r} of {name!r}, number {number}, has no image to use now, "
                f"so the numbers of the classes would change: put its images back, or remove "
                f"{data / 'sources' / name}.json and register again to number the classes anew"
            )


def _not_registered_error(name: str) -> FractalError:
    return FractalError(
        f"the source {name!r} is not registered on this machine: register the folder that has its "
        f"images (`fractal data register`), or get the prepared data set with `dvc pull`"
    )


def register_statistics(data: Path, dataset: str, file: Path | None, sha256: str = "") -> None:
    """Make `file` the statistics with which FID compares samples of a registered data set. `sha256`
    is the file's checksum. If `file` is None, the prepared images' statistics are used again."""
    statistics, location = None, _location(data, f"{dataset}.statistics")
    if file is None:
        location.unlink(missing_ok=True)
    else:
        statistics = RegisteredStatistics(file=file.name, sha256=sha256)
        _write(location, f"{file.resolve()}\n")
    entry = read_registered(data)[dataset].model_copy(update={"statistics": statistics})
    update_registered(data, {dataset: entry})


def statistics_file(data: Path, dataset: str) -> Path | None:
    """Return the path of the statistics file that is registered for a data set. Return None if this
    machine has no path for it."""
    location = _read_location(data, f"{dataset}.statistics")
    return Path(location) if location is not None else None


def _location(data: Path, name: str) -> Path:
    return data / "sources" / f"{name}.location"


def _read_location(data: Path, name: str) -> str | None:
    file = _location(data, name)
    return file.read_text().removesuffix("\n") if file.is_file() else None


def listing_file(data: Path, name: str) -> Path:
    return data / "sources" / f"{name}.listing.parquet"


def _plan_datasets(data: Path, name: str, resolutions: tuple[int, ...]) -> dict[str, int]:
    """Return the resolutions, in pixels, of the data sets to build from the source `name`, by the
    data set's name. Raises FractalError for a name or resolution that cannot be used."""
    if not _NAME.fullmatch(name):
        raise FractalError(
            f"the name {name!r} cannot be used: expected small letters, digits and -, first a "
            f"letter, such as flowers"
        )
    resolutions = resolutions or _DEFAULT_SIDES.get(name, ())
    if not resolutions:
        raise FractalError(
            f"say at which resolution to build {name!r}, 64 for example", setting="resolution"
        )
    for resolution in resolutions:
        if not 2 <= resolution <= 4096:
            raise FractalError(f"the resolution is {resolution}, expected 2 to 4096 pixels")
    is_numbered = name in _DEFAULT_SIDES or len(resolutions) > 1
    names = {f"{name}{size}" if is_numbered else name: size for size in resolutions}
    taken = {"digits": "the embedded data set", "sources": "the folder of the sources"}
    others = {k: v.source for k, v in read_registered(data).items() if v.source != name}
    taken |= {k: f"the source {source}" for k, source in others.items()}
    for dataset in names:
        if dataset in taken:
            raise FractalError(f"{dataset!r} is taken by {taken[dataset]}: choose another name")
        if dataset.endswith(_RESERVED_ENDINGS):
            raise FractalError(
                f"{dataset!r} has an ending that is reserved for results "
                f"({', '.join(_RESERVED_ENDINGS)}): choose another name"
            )
        folder = data / dataset
        if folder.exists() and not (folder / MANIFEST_NAME).is_file():
            raise FractalError(
                f"{folder} exists and is no prepared data set, so it is not replaced: "
                f"choose another name, or move it away"
            )
    return names


def _write(file: Path, text: str) -> None:
    with atomic_file(file) as partial:
        partial.write_text(text)
