"""`fractal data …`: register sources of images; build and check data sets from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fractal_model.cli.options import ParamsOption, group
from fractal_model.common.console import progress_bar, say, show
from fractal_model.common.errors import FractalError
from fractal_model.common.files import sha256
from fractal_model.common.plurals import count_of
from fractal_model.common.tables import FittedTable
from fractal_model.config.data import DIGITS, IMAGENET, OPENMOJI
from fractal_model.config.params_source import DEFAULT_SOURCE

if TYPE_CHECKING:
    from fractal_model.data.manifest import Manifest

app = group("Register images, prepare data sets from them, and check and describe the data sets.")
OTHER_DATA = "for ImageNet or pictures of your own: `fractal data register DIR`"
DatasetArgument = Annotated[
    str, typer.Argument(help="A data set: digits, or a registered one such as imagenet64.")
]


@app.command("register")
def register_source(
    place: Annotated[
        str,
        typer.Argument(
            metavar="DIR",
            help="Folder of ImageNet (archives, extracted tree or parquet files) or of other "
            "images (CLASS/*, train/CLASS/* and validation/CLASS/*, images of one class, or "
            "parquet files of the Hugging Face hub); or a table of paths and labels (CSV or "
            "parquet); or hub:NAME, a data set of the Hugging Face hub; or the word openmoji, for "
            "the pictures of the extra `emoji`.",
        ),
    ],
    name: Annotated[
        str, typer.Option(help="Name of the source, if not ImageNet or openmoji.")
    ] = IMAGENET,
    resolution: Annotated[
        list[int] | None,
        typer.Option(
            help="Image side in pixels; may be repeated. Default: 64 and 256 for ImageNet, 64 for "
            "openmoji."
        ),
    ] = None,
    holdout: Annotated[
        float,
        typer.Option(min=0, max=0.9, help="Share of validation images, if DIR has none."),
    ] = 0.0,
    background: Annotated[
        str,
        typer.Option(help="Colour behind transparent pictures: white, black or #rrggbb."),
    ] = "white",
    fit: Annotated[
        Literal["crop", "pad", "squash"],
        typer.Option(
            help="How pictures become squares: cut out the centre, add bars of the background "
            "colour, or change the proportions."
        ),
    ] = "crop",
    label: Annotated[
        str | None,
        typer.Option(help="Column of the classes in a table or a data set of the hub."),
    ] = None,
    params: ParamsOption = DEFAULT_SOURCE,
) -> dict[str, object]:
    """Register images where they are; `dvc repro` prepares them later. Only those of the hub are
    downloaded."""
    from fractal_model.data.sources.folders import ignored_folders
    from fractal_model.data.sources.openmoji import openmoji_folder
    from fractal_model.data.sources.registered import read_registered, register

    data = params.load().paths.data
    if place == OPENMOJI and not Path(place).exists():
        if name not in (IMAGENET, OPENMOJI):
            raise FractalError("OpenMoji's pictures keep their name: leave it out", setting="name")
        place, name = str(openmoji_folder()), OPENMOJI
    with progress_bar(f"{name}: images listed", None) as update:
        source, listing = register(
            place,
            data,
            name=name,
            resolutions=tuple(dict.fromkeys(resolution or ())),
            holdout=holdout,
            label=label,
            background=background,
            fit=fit,
            progress=update,
        )
    datasets = [dataset for dataset, entry in read_registered(data).items() if entry.source == name]
    table = FittedTable(f"{source.name}: {source.kind}", ["", "images"], headings=False)
    table.add_row("classes", f"{source.classes:,}")
    for split, images in source.images.items():
        table.add_row(f"{split} images", f"{images:,}")
    table.add_row("refused", f"{source.refused:,}")
    show(table)
    for part in source.missing:
        say(f"missing: {part}")
    if source.kind == "folder" and (ignored := ignored_folders(Path(place))):
        say(f"ignored: {', '.join(ignored)}; only train and validation (or val) are read")
    for entry in listing.refused[:3]:
        say(f"refused: {entry.split}/{entry.file}: {entry.reason}")
    if source.refused > 3:
        say(f"refused: {source.refused - 3:,} more; the report of the data set lists all of them")
    say(f"registered: `dvc repro reference report` builds {' and '.join(datasets)}")
    counts = source.model_dump(include={"name", "kind", "classes", "images", "refused", "missing"})
    return {**counts, "datasets": datasets}


@app.command("prepare")
def prepare(
    dataset: DatasetArgument = DIGITS, params: ParamsOption = DEFAULT_SOURCE
) -> dict[str, object]:
    """Prepare a data set, or continue a stopped preparation; `dvc repro` calls this."""
    from fractal_model.data.datasets import prepare_dataset
    from fractal_model.data.sources.registered import read_registered
    from fractal_model.parallel.ray_shards import build_shards

    settings = params.load()
    manifest = prepare_dataset(settings, dataset, build_shards)
    if dataset == DIGITS and not read_registered(settings.paths.data):
        say(OTHER_DATA)
    return _counts(manifest)


@app.command("reference")
def reference(dataset: DatasetArgument = DIGITS, params: ParamsOption = DEFAULT_SOURCE) -> None:
    """Extract a data set's Inception features, with which FID compares; `dvc repro` calls this."""
    from fractal_model.metrics.dataset_reference import extract_reference

    extract_reference(params.load(), dataset)


@app.command("register-reference")
def register_reference(
    dataset: Annotated[str, typer.Argument(help="A registered data set such as imagenet64.")],
    file: Annotated[
        Path | None, typer.Argument(help="ADM's file of statistics, such as adm_in64_stats.npz.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Use our own statistics again.")] = False,
    params: ParamsOption = DEFAULT_SOURCE,
) -> None:
    """Use ADM's published statistics of a data set as its reference, instead of our own ones."""
    from fractal_model.data.sources.registered import read_registered, register_statistics
    from fractal_model.metrics.adm_statistics import conflicting_resolution, load_published

    data = params.load().paths.data
    entries = read_registered(data)
    if dataset not in entries:
        raise FractalError(
            f"the data set {dataset!r} is not registered: choose {' or '.join(entries) or 'none'}; "
            f"`fractal data register DIR` adds one"
        )
    if (file is None) != remove:
        raise FractalError(
            f"{'both' if remove else 'neither'} of FILE and --remove given: give a file with ADM's "
            f"statistics, or --remove to use the statistics of our own images"
        )
    if file is None:
        register_statistics(data, dataset, None)
        return
    resolution = entries[dataset].resolution
    published = load_published(file, resolution)
    if named := conflicting_resolution(file, resolution):
        say(
            f"warning: the name of {file.name} says {named} px, {dataset} has {resolution}: an FID "
            f"against statistics of another resolution has no meaning"
        )
    register_statistics(data, dataset, file, sha256(file))
    images = "no images" if published.images is None else count_of(len(published.images), "image")
    say(f"{file.name}: statistics and {images}; `dvc repro` uses them from now on")


@app.command("report")
def report(dataset: DatasetArgument = DIGITS, params: ParamsOption = DEFAULT_SOURCE) -> None:
    """Describe a prepared data set in numbers, tables and a picture; `dvc repro` calls this."""
    from fractal_model.data.report import report_dataset

    report_dataset(params.load(), dataset)


@app.command("verify")
def verify(
    dataset: DatasetArgument = DIGITS, params: ParamsOption = DEFAULT_SOURCE
) -> dict[str, object]:
    """Decode every image of a prepared data set and compare its checksum with the manifest."""
    from fractal_model.data.manifest import read_manifest
    from fractal_model.data.prepared import verify_prepared

    folder = params.load().dataset_folder(dataset)
    images = sum(record.images for record in read_manifest(folder).splits.values())
    with progress_bar(f"{dataset}: images verified", images, images=True) as update:
        manifest = verify_prepared(folder, update)
    say(f"{dataset}: checked {count_of(images, 'image')}, checksum {manifest.checksum[:16]}")
    return _counts(manifest)


def _counts(manifest: Manifest) -> dict[str, object]:
    images = {split: record.images for split, record in manifest.splits.items()}
    return {"dataset": manifest.dataset, "images": images, "checksum": manifest.checksum}
