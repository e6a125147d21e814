"""`fractal data …`: sources of images, and what `dvc repro` builds from them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fractal_model.cli.options import ParamsOption
from fractal_model.common.console import console, progress_bar, say
from fractal_model.common.errors import FractalError
from fractal_model.common.files import sha256
from fractal_model.config.params import DEFAULT_FILE, Params, load_params
from fractal_model.data.manifest import Manifest
from fractal_model.data.sources.inspection import IMAGENET, Source
from fractal_model.data.sources.listing import Listing
from fractal_model.data.sources.registered import (
    load_description,
    register,
    register_statistics,
    registered,
    statistics_file,
)

if TYPE_CHECKING:
    from fractal_model.metrics.reference import PublishedStatistics

app = typer.Typer(
    help="Register images, prepare them and describe what was prepared.",
    no_args_is_help=True,
    add_completion=False,
)

DIGITS = "digits"
HOW_TO_ADD_IMAGENET = (
    "ImageNet is not registered: add it with `fractal data register DIR`, where DIR has the "
    "official archives, the extracted tree or the parquet files; then run `dvc repro` again"
)
DatasetArgument = Annotated[
    str, typer.Argument(help="Name of the data set: digits, or a registered one.")
]


@app.command("register")
def register_source(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="ImageNet's archives, its extracted tree or its parquet files; "
            "or train/CLASS/* and validation/CLASS/*, or CLASS/*.",
        ),
    ],
    name: Annotated[
        str, typer.Option(help="A name of your own for images other than ImageNet.")
    ] = IMAGENET,
    resolution: Annotated[
        list[int] | None,
        typer.Option(help="Side of the prepared images; repeat for several. ImageNet: 64, 256."),
    ] = None,
    holdout: Annotated[
        float,
        typer.Option(min=0, max=0.9, help="Share for validation, where there is no such folder."),
    ] = 0.0,
    params: ParamsOption = DEFAULT_FILE,
) -> None:
    """Say where images are. Nothing is copied; `dvc repro` prepares them afterwards."""
    data = load_params(params).paths.data
    resolutions = tuple(dict.fromkeys(resolution or ()))
    with progress_bar(f"{name}: images found", None) as update:
        source, listing = register(
            folder, data, name=name, resolutions=resolutions, holdout=holdout, progress=update
        )
    _print_source(source, listing)
    datasets = [dataset for dataset, entry in registered(data).items() if entry.source == name]
    say(f"registered: `dvc repro` now builds {' and '.join(datasets)}")


def _print_source(source: Source, listing: Listing) -> None:
    table = Table(title=f"{source.name}: {source.kind}", title_justify="left", show_header=False)
    table.add_row("classes", f"{source.classes:,}")
    for split, images in source.images.items():
        table.add_row(f"{split} images", f"{images:,}")
    table.add_row("refused", f"{source.refused:,}")
    console.print(table)
    for part in source.missing:
        say(f"missing: {part}")
    for entry in listing.refused[:3]:
        say(f"refused: {entry.split}/{entry.file}: {entry.reason}")
    if source.refused > 3:
        say(f"refused: {source.refused - 3:,} more; the report of the data set names them all")


@app.command("prepare")
def prepare(dataset: DatasetArgument = DIGITS, params: ParamsOption = DEFAULT_FILE) -> None:
    """Build a prepared data set; `dvc repro` calls this. Killed, it goes on where it was."""
    settings = load_params(params)
    if dataset == DIGITS:
        manifest = _prepare_digits(settings)
    else:
        manifest = _prepare_registered(settings, dataset)
    counts = ", ".join(f"{record.images:,} {name}" for name, record in manifest.splits.items())
    say(f"{dataset}: {counts} images of {manifest.resolution} px, {manifest.checksum[:16]}")
    if manifest.quarantined:
        count = len(manifest.quarantined)
        files = "1 file" if count == 1 else f"{count:,} files"
        say(f"{dataset}: {files} left out; the report says which and why")
    if dataset == DIGITS and IMAGENET not in {
        entry.source for entry in registered(settings.paths.data).values()
    }:
        say(HOW_TO_ADD_IMAGENET)


def _prepare_digits(settings: Params) -> Manifest:
    from fractal_model.data.digits import prepare_digits

    return prepare_digits(
        settings.paths.data / DIGITS,
        validation_images=settings.datasets.digits.validation_images,
        seed=settings.datasets.digits.seed,
    )


def _prepare_registered(settings: Params, dataset: str) -> Manifest:
    from fractal_model.data.preparation import prepare_source
    from fractal_model.data.shard_job import ShardJob, in_processes

    data = settings.paths.data
    known = registered(data)
    if dataset not in known:
        raise FractalError(
            f"the data set {dataset!r} is unknown: choose {' or '.join([DIGITS, *known])}, or add "
            f"one with `fractal data register DIR`"
        )
    entry = known[dataset]
    source = load_description(data, entry.source)
    processes = settings.preparation.processes or os.cpu_count() or 1

    def run_jobs(jobs: list[ShardJob]) -> None:
        if os.environ.get("RAY_ADDRESS"):
            from fractal_model.parallel.ray_shards import over_cluster

            over_cluster(jobs)
        else:
            in_processes(jobs, processes)

    images = sum(source.images.values())
    with progress_bar(f"{dataset}: images", images, speed="images/s") as update:
        return prepare_source(
            data,
            dataset,
            source=entry.source,
            resolution=entry.resolution,
            settings=settings.preparation,
            run_jobs=run_jobs,
            progress=update,
        )


@app.command("reference")
def reference(dataset: DatasetArgument = DIGITS, params: ParamsOption = DEFAULT_FILE) -> None:
    """Extract the Inception features that samples are compared with; `dvc repro` calls this."""
    from fractal_model.common.memory import compute_device
    from fractal_model.data.prepared import open_prepared
    from fractal_model.metrics.inception import load_inception
    from fractal_model.metrics.reference import build_reference

    settings = load_params(params)
    split = open_prepared(settings.dataset_folder(dataset), "train")
    published = _published(settings, dataset, split.manifest.resolution)
    images = settings.metrics.statistics_images.get(dataset, len(split))
    sample = min(settings.metrics.feature_sample, images)
    total = images if published is None else sample
    with progress_bar(f"{dataset}: Inception features", total, speed="images/s") as update:
        build_reference(
            split,
            load_inception(settings.metrics.inception_weights, compute_device()),
            settings.reference_file(dataset),
            images=images,
            sample=sample,
            published=published,
            progress=update,
        )


def _published(settings: Params, dataset: str, resolution: int) -> PublishedStatistics | None:
    """What was registered instead of our own statistics.

    Raises FractalError when it is not on this machine, or not what it was.
    """
    from fractal_model.metrics.adm import load_published

    data = settings.paths.data
    entry = registered(data).get(dataset)
    if entry is None or entry.statistics is None:
        return None
    name, file = entry.statistics.file, statistics_file(data, dataset)
    way_out = (
        f"run `fractal data register-reference {dataset} FILE` with {name} as it was, or "
        f"`fractal data register-reference {dataset} --remove` to compare with our own statistics"
    )
    if file is None or not file.is_file():
        found = "is not known on this machine" if file is None else f"is not at {file} any more"
        raise FractalError(f"{dataset} is compared with {name}, which {found}: {way_out}")
    if sha256(file) != entry.statistics.sha256:
        raise FractalError(f"{file} has changed since it was registered: {way_out}")
    return load_published(file, resolution)


@app.command("register-reference")
def register_reference(
    dataset: Annotated[str, typer.Argument(help="A registered data set, such as imagenet64.")],
    file: Annotated[
        Path | None,
        typer.Argument(help="ADM's adm_in64_stats.npz, VIRTUAL_imagenet64_labeled.npz or alike."),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Back to our own statistics.")] = False,
    params: ParamsOption = DEFAULT_FILE,
) -> None:
    """Compare samples with ADM's published statistics instead of our own."""
    from fractal_model.metrics.adm import load_published

    data = load_params(params).paths.data
    known = registered(data)
    if dataset not in known:
        raise FractalError(
            f"the data set {dataset!r} is not registered: choose {' or '.join(known) or 'none'}; "
            f"`fractal data register DIR` adds one"
        )
    if (file is None) != remove:
        raise FractalError("give either ADM's FILE or --remove")
    if file is None:
        register_statistics(data, dataset, None)
        return
    published = load_published(file, known[dataset].resolution)
    register_statistics(data, dataset, file, sha256(file))
    images = 0 if published.images is None else len(published.images)
    say(f"{file.name}: statistics and {images:,} images; `dvc repro` takes them over")


@app.command("report")
def report(dataset: DatasetArgument = DIGITS, params: ParamsOption = DEFAULT_FILE) -> None:
    """Describe a prepared data set in numbers, tables and a picture; `dvc repro` calls this."""
    from fractal_model.data.report import write_report

    settings = load_params(params)
    folder = settings.paths.data / f"{dataset}-report"
    metrics = write_report(settings.paths.data / dataset, folder)
    say(f"{dataset}: report of {metrics['train_images']:,.0f} training images in {folder}")
