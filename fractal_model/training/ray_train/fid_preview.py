"""A preview FID of a run in progress, with as many samples as a preview of an evaluation.

Decided here: which validations draw a preview depends on the number of images seen alone, so a
continued run draws the same ones.
"""

import tempfile
from functools import partial
from pathlib import Path

from fractal_model.data.prepared import open_prepared
from fractal_model.evaluation.protocol import make_protocol
from fractal_model.evaluation.samples import FeatureNetworks, draw_samples
from fractal_model.metrics.distances import frechet_distance
from fractal_model.metrics.inception import inception_checksum
from fractal_model.metrics.names import FID, preview_name
from fractal_model.metrics.reference import load_reference
from fractal_model.metrics.statistics import FeatureStatistics
from fractal_model.model.fractal import FractalModel
from fractal_model.training.job import PreviewInputs, TrainingJob, ValidationPoint
from fractal_model.training.ray_train.measurement import Preview


def preview_of(job: TrainingJob, place: ValidationPoint) -> Preview | None:
    """Return the function that measures the preview FID at a validation; None if the recipe has no
    preview there. Every `preview_every`-th validation and the last one have one."""
    recipe, inputs = job.recipe, job.preview
    if inputs is None or not recipe.validation.preview_every:
        return None
    number = round(place.epoch / recipe.validate_every_epochs)
    is_last = place.position >= recipe.epochs * job.images
    if number % recipe.validation.preview_every and not is_last:
        return None
    return partial(_measure_preview, job, inputs)


def _measure_preview(
    job: TrainingJob, inputs: PreviewInputs, model: FractalModel
) -> dict[str, float]:
    """Return the FID under its name in a preview, such as fid_5k. FractalError: the reference or
    the Inception weights are missing or do not fit the data set."""
    manifest = open_prepared(job.data, "train").manifest
    reference = load_reference(inputs.reference)
    # A compiled sampler needs a minute to start.
    sampling = job.sampling.model_copy(update={"compile": False})
    protocol = make_protocol(
        inputs.evaluation,
        manifest,
        reference,
        inception_checksum=inception_checksum(inputs.inception_weights),
        preview=True,
        sampling=sampling,
    )
    assert protocol.images is not None
    with tempfile.TemporaryDirectory() as folder:
        samples = draw_samples(
            model,
            protocol,
            protocol.images,
            FeatureNetworks(inputs.inception_weights),
            Path(folder),
            lambda done: None,
            largest=inputs.evaluation.batch_size,
        )
    statistics = FeatureStatistics.from_features(samples.inception)
    fid = frechet_distance(statistics, reference.statistics)
    return {preview_name(FID, protocol.samples): fid}
