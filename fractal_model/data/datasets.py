"""Prepare the data sets of a project by name: digits, and the sets in `registered.yaml`."""

from collections import Counter
from collections.abc import Callable

from fractal_model.common.console import progress_bar, say
from fractal_model.common.errors import FractalError
from fractal_model.common.plurals import count_of
from fractal_model.common.validation import name_nearest
from fractal_model.config.data import DIGITS
from fractal_model.config.params import Params
from fractal_model.data.digits import prepare_digits
from fractal_model.data.manifest import Manifest
from fractal_model.data.preparation import prepare_source, read_raw_counts
from fractal_model.data.shard_job import ShardJob
from fractal_model.data.sources.registered import load_description, read_registered

BuildShards = Callable[[list[ShardJob], int], None]
"""Function that takes jobs and a number of processes (0: one per core), and builds the shards of
these jobs."""


def dataset_names(params: Params) -> list[str]:
    """Return the names of all known data sets. FractalError: `registered.yaml` is damaged."""
    return [DIGITS, *read_registered(params.paths.data)]


def require_dataset(params: Params, dataset: str) -> None:
    """Raise FractalError if `dataset` is neither digits nor a registered data set."""
    names = dataset_names(params)
    if dataset not in names:
        raise FractalError(
            f"the data set {dataset!r} is unknown{name_nearest(dataset, names)}; add one with "
            f"`fractal data register DIR`"
        )


def prepare_dataset(params: Params, dataset: str, build_shards: BuildShards) -> Manifest:
    """Build the prepared data set `dataset`, or continue a killed preparation. Print its number of
    images and return its manifest. `build_shards` builds the shards of any data set but digits.
    Raises FractalError when the name is unknown, the source is missing or has changed, or too many
    images cannot be read."""
    require_dataset(params, dataset)
    if dataset == DIGITS:
        settings = params.datasets.digits
        manifest = prepare_digits(
            params.paths.data / DIGITS,
            validation_images=settings.validation_images,
            seed=settings.seed,
        )
    else:
        manifest = _prepare_registered(params, dataset, build_shards)
    counts = ", ".join(f"{record.images:,} {name}" for name, record in manifest.splits.items())
    say(f"{dataset}: {counts} images of {manifest.resolution} px, {manifest.checksum[:16]}")
    if manifest.quarantined:
        files = count_of(len(manifest.quarantined), "file")
        say(f"{dataset}: {files} left out; the report says which and why")
    _say_conversions(params, dataset, manifest)
    return manifest


def _say_conversions(params: Params, dataset: str, manifest: Manifest) -> None:
    counts = read_raw_counts(params.paths.data / dataset).values()
    laid_on = sum((split.laid_on for split in counts), Counter[str]())
    for images, description in (
        (
            sum(split.enlarged for split in counts),
            f"smaller than {manifest.resolution} px, enlarged",
        ),
        (sum(split.converted for split in counts), "with an ICC profile, converted to sRGB"),
        (sum(split.profile_unreadable for split in counts), "with an ICC profile that was ignored"),
        *((images, f"transparent in places, laid on {name}") for name, images in laid_on.items()),
        (sum(split.several_frames for split in counts), "of several frames, the first was taken"),
    ):
        if images:
            say(f"{dataset}: {count_of(images, 'image')} {description}")


def _prepare_registered(params: Params, dataset: str, build_shards: BuildShards) -> Manifest:
    data = params.paths.data
    entry = read_registered(data)[dataset]
    images = sum(load_description(data, entry.source).images.values())
    with progress_bar(f"{dataset}: images", images, images=True) as update:
        return prepare_source(
            data,
            dataset,
            source=entry.source,
            resolution=entry.resolution,
            settings=params.preparation,
            run_jobs=lambda jobs: build_shards(jobs, params.preparation.processes),
            progress=update,
        )
