"""The reference file of a data set, made from the data set's images or registered statistics."""

from fractal_model.common.console import progress_bar
from fractal_model.common.devices import compute_device
from fractal_model.common.errors import FractalError
from fractal_model.common.files import sha256
from fractal_model.config.params import Params
from fractal_model.data.prepared import open_prepared
from fractal_model.data.sources.registered import read_registered, statistics_file
from fractal_model.metrics.adm_statistics import load_published
from fractal_model.metrics.inception import load_inception
from fractal_model.metrics.reference import PublishedStatistics, Reference, build_reference


def extract_reference(params: Params, dataset: str) -> Reference:
    """Extract Inception features of a data set's real images, for comparison with samples. Write
    them to the reference file of the data set and return the reference. FractalError: the data set
    is not prepared, or the statistics registered for it are missing or have changed."""
    split = open_prepared(params.dataset_folder(dataset), "train")
    published = _registered_statistics(params, dataset, split.manifest.resolution)
    images = params.metrics.statistics_images.get(dataset, len(split))
    sample = min(params.metrics.feature_sample, images)
    total = images if published is None else sample
    with progress_bar(f"{dataset}: Inception features", total, images=True) as update:
        return build_reference(
            split,
            load_inception(params.metrics.inception_weights, compute_device()),
            params.reference_file(dataset),
            images=images,
            sample=sample,
            published=published,
            progress=update,
        )


def _registered_statistics(
    params: Params, dataset: str, resolution: int
) -> PublishedStatistics | None:
    """Read the statistics that are registered for the data set; None if there are none.
    FractalError: they are not on this machine, or have changed."""
    data = params.paths.data
    entry = read_registered(data).get(dataset)
    if entry is None or entry.statistics is None:
        return None
    name, file = entry.statistics.file, statistics_file(data, dataset)
    way_out = (
        f"run `fractal data register-reference {dataset} FILE` with the original {name}, or remove "
        f"the registration with that command to use statistics of the data set's own images"
    )
    if file is None or not file.is_file():
        problem = "has no known path on this machine" if file is None else f"is not at {file}"
        raise FractalError(f"the reference of {dataset} is {name}, which {problem}: {way_out}")
    if sha256(file) != entry.statistics.sha256:
        raise FractalError(f"{file} has changed since it was registered: {way_out}")
    return load_published(file, resolution)
