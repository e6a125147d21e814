"""The likelihood metrics of an evaluation: held-out bits per dimension without and with classes."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fractal_model.common.errors import FractalError
from fractal_model.data.prepared import PreparedSplit
from fractal_model.evaluation.measure_likelihood import measure_likelihood
from fractal_model.evaluation.protocol import ImageSource
from fractal_model.evaluation.same_classes import class_mismatch
from fractal_model.evaluation.samples import Progress
from fractal_model.metrics.image_metrics import MetricResults
from fractal_model.metrics.names import CONDITIONAL_NLL, NLL, error_name
from fractal_model.model.fractal import FractalModel
from fractal_model.model.likelihood import Likelihood
from fractal_model.parallel.parts import MapParts, map_in_this_process
from fractal_model.parallel.stored_parts import StoredParts


@dataclass(frozen=True)
class HeldOutLikelihood:
    """How well a model predicts the N validation images."""

    results: MetricResults
    """Mean bits per dimension and their standard errors, by the metric's name. A metric that cannot
    be measured is absent, with the reason."""
    bits: Tensor
    """Unconditional bits per dimension of each image, (N,) float64."""


def held_out_likelihood(
    model: FractalModel,
    split: PreparedSplit,
    source: ImageSource,
    folder: Path,
    progress: Progress,
    *,
    largest: int,
    map_parts: MapParts = map_in_this_process,
) -> HeldOutLikelihood:
    """Measure `nll_bits_per_dim`, without classes as in the paper, and
    `nll_conditional_bits_per_dim`, with each image's class. Both have a standard error over the
    images. `source` has the protocol's seed and number of passes. Parts are stored in `folder`, and
    parts from an earlier call with the same arguments are used again. `progress` receives the
    number of images done; each image counts once for each metric. FractalError: a result is not
    finite; see also `measure_likelihood`."""

    def measure(conditional: bool) -> Likelihood:
        name = CONDITIONAL_NLL if conditional else NLL
        return measure_likelihood(
            model,
            split,
            lambda done: progress(done + conditional * len(split)),
            passes=source.likelihood_passes or 0,  # measure_likelihood refuses 0
            seed=source.seed,
            conditional=conditional,
            largest=largest,
            map_parts=StoredParts(folder / name, map_parts),
        )

    unconditional = measure(False)
    results = _likelihood_results(NLL, unconditional)
    if reason := class_mismatch(model.config, split.manifest):
        names = (CONDITIONAL_NLL, error_name(CONDITIONAL_NLL))
        results |= MetricResults({}, dict.fromkeys(names, reason))
    else:
        results |= _likelihood_results(CONDITIONAL_NLL, measure(True))
    return HeldOutLikelihood(results, unconditional.per_image)


def _likelihood_results(name: str, likelihood: Likelihood) -> MetricResults:
    bits, mean = likelihood.per_image, {name: likelihood.mean}
    bad = int((~bits.isfinite()).sum())
    if bad:
        raise FractalError(
            f"{name} is not finite for {bad:,} of {len(bits):,} images: the training of these "
            f"weights failed, evaluate an earlier checkpoint"
        )
    if len(bits) > 1:
        return MetricResults(mean | {error_name(name): likelihood.standard_error}, {})
    return MetricResults(mean, {error_name(name): "a single image gives no standard error"})
