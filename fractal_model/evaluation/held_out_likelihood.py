"""Likelihood of held-out images under a model: in total, and by its terms (see `term_names`).

The caller passes a `MapParts`, which decides whether this process or Ray workers compute.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fractal_model.common.errors import FractalError
from fractal_model.common.strict import LARGEST_SEED
from fractal_model.config.validation import MOST_PASSES
from fractal_model.data.loader import read_batch
from fractal_model.data.order import epoch_permutation
from fractal_model.data.prepared import PreparedSplit
from fractal_model.evaluation.protocol import ImageSource
from fractal_model.evaluation.same_classes import class_mismatch
from fractal_model.evaluation.samples import Progress
from fractal_model.metrics.image_metrics import MetricResults
from fractal_model.metrics.names import CONDITIONAL_NLL, NLL, error_name
from fractal_model.model.fractal import NO_CLASS, FractalModel
from fractal_model.model.likelihood import (
    Likelihood,
    is_exact,
    mask_seeds,
    pass_bits,
    pass_bits_by_term,
    term_names,
)
from fractal_model.parallel.parts import LARGEST_PART, MapParts, Work, map_in_this_process
from fractal_model.parallel.stored_parts import StoredParts

IMAGES_BY_LEVEL = 256
"""Number of images from which the likelihood's terms (the pixels' colours and each level's guiding
pixels) are computed. The likelihood itself is computed from all images."""
_AT_ONCE_BY_LEVEL = 8


def measure_likelihood(
    model: FractalModel,
    split: PreparedSplit,
    progress: Progress,
    *,
    passes: int,
    seed: int,
    conditional: bool = False,
    images: Sequence[int] | None = None,
    largest: int = LARGEST_PART,
    map_parts: MapParts = map_in_this_process,
) -> Likelihood:
    """Measure the bits per dimension of every image of a split, or only of the images whose indices
    in the split are in `images`. With `conditional`, the model gets the class of each image.

    `passes` is the number of mask draws for each image in a MAR model; `seed` decides the masks. At
    most `largest` images are computed at a time; `progress` receives the number of images done.
    FractalError: the images have another resolution than the model or, with `conditional`, other
    classes; or `passes`, `largest` or `seed` is out of range.
    """
    manifest, side = split.manifest, model.config.image_size
    if manifest.resolution != side:
        raise FractalError(
            f"the data set {manifest.dataset} has images of {manifest.resolution} px, the model of "
            f"{side} px: prepare the images at the model's resolution"
        )
    if conditional and (reason := class_mismatch(model.config, manifest)):
        raise FractalError(reason)
    if not 1 <= passes <= MOST_PASSES or largest < 1 or not 0 <= seed <= LARGEST_SEED:
        raise FractalError(
            f"passes {passes}, batch size {largest} and seed {seed} given: passes must be "
            f"1 … {MOST_PASSES}, the batch size 1 or more, the seed 0 … {LARGEST_SEED}"
        )
    exact = is_exact(model.config)
    indices = range(len(split)) if images is None else images
    per_pass = torch.empty(len(indices), 1 if exact else passes, dtype=torch.float64)
    compute = partial(pass_bits, passes=passes)
    start = partial(_start, compute, model, split, indices, seed, conditional)
    done = 0
    for part, bits in map_parts(start, len(indices), largest=largest):
        per_pass[part.start : part.stop] = bits
        done += len(part)
        progress(done)
    return Likelihood(per_pass, exact)


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


def likelihood_by_level(
    model: FractalModel,
    split: PreparedSplit,
    *,
    passes: int,
    seed: int,
    images: int = IMAGES_BY_LEVEL,
    map_parts: MapParts = map_in_this_process,
) -> dict[str, float]:
    """Return the mean bits per dimension of each term of the unconditional likelihood, by the
    term's name; the terms add up to the likelihood. The mean is over a fixed random choice of
    `images` images of the split, or over all images if the split has fewer. `passes` and `seed`
    mean the same as in `measure_likelihood`. FractalError: not even one image fits the memory."""
    indices = epoch_permutation(0, 0, len(split))[:images].tolist()
    compute = partial(pass_bits_by_term, passes=passes)
    start = partial(_start, compute, model, split, indices, seed, False)
    parts = map_parts(start, len(indices), largest=_AT_ONCE_BY_LEVEL)
    bits = torch.cat([rows for _, rows in parts]).mean((0, 1))
    return dict(zip(term_names(model.config), bits.tolist(), strict=True))


def _start(
    compute: Callable[..., Tensor],
    model: FractalModel,
    split: PreparedSplit,
    images: Sequence[int],
    seed: int,
    conditional: bool,
    device: torch.device,
) -> Work:
    """Return a function that computes the bits of a part. A part is a range of positions in
    `images`, a list of indices. `compute` is `pass_bits` or `pass_bits_by_term`."""
    model = model.to(device)

    def work(part: range) -> Tensor:
        pixels, labels, indices = read_batch(split, images[part.start : part.stop])
        if not conditional:
            labels = torch.full_like(labels, NO_CLASS)
        seeds = mask_seeds(seed, indices.tolist())
        return compute(model, pixels.to(device), seeds, labels=labels.to(device))

    return work
