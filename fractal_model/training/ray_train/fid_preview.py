"""A preview FID of a run in progress, with as many samples as a preview of an evaluation.

Decided here: which validations draw a preview depends on the number of images seen alone, so a
continued run draws the same ones.
"""

import tempfile
import time
from functools import partial
from pathlib import Path

from fractal_model.common.errors import FractalError
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

SHARE_OF_TIMEOUT = 0.9
"""Share of `timeout_seconds` after which a preview ends itself. If Ray ended it, the held-out
likelihoods of the point would be lost, too."""


def preview_of(job: TrainingJob, place: ValidationPoint) -> Preview | None:
    """Return the function that measures the preview FID at a validation; None if the recipe has no
    preview there. Every `preview_every`-th validation has one, and the one after the recipe's last
    epoch. The time for the preview starts with this call."""
    recipe, inputs = job.recipe, job.preview
    if inputs is None or not recipe.validation.preview_every:
        return None
    number = place.step // recipe.steps(recipe.validate_every_epochs, job.images)
    is_last = place.position >= recipe.epochs * job.images
    if number % recipe.validation.preview_every and not is_last:
        return None
    deadline = time.monotonic() + SHARE_OF_TIMEOUT * recipe.validation.timeout_seconds
    return partial(_measure_preview, job, inputs, deadline)


def _measure_preview(
    job: TrainingJob, inputs: PreviewInputs, deadline: float, model: FractalModel
) -> dict[str, float]:
    """Return the FID under its name in a preview, such as fid_5k. FractalError: the reference or
    the Inception weights are missing or do not fit the data set, or the deadline, in the seconds of
    `time.monotonic`, is over."""
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

    def require_time(done: int) -> None:
        if time.monotonic() > deadline:
            raise FractalError(
                f"the preview FID has {done} of {protocol.samples} samples when the time is over: "
                f"raise validation.timeout_seconds, or lower evaluation's preview_per_class"
            )

    with tempfile.TemporaryDirectory() as folder:
        samples = draw_samples(
            model,
            protocol,
            protocol.images,
            FeatureNetworks(inputs.inception_weights),
            Path(folder),
            require_time,
            largest=inputs.evaluation.batch_size,
        )
    statistics = FeatureStatistics.from_features(samples.inception)
    fid = frechet_distance(statistics, reference.statistics)
    return {preview_name(FID, protocol.samples): fid}
