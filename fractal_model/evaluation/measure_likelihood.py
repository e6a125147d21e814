"""Likelihood of images under a model: per image, and by its terms (see `term_names`).

The caller passes a `MapParts`, which decides whether this process or Ray workers compute. This
module imports no network that extracts features, because training workers import it.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from fractal_model.common.errors import FractalError
from fractal_model.data.loader import read_batch
from fractal_model.data.order import epoch_permutation
from fractal_model.data.prepared import PreparedSplit
from fractal_model.evaluation.image_likelihood import image_likelihood, start_bits
from fractal_model.evaluation.same_classes import class_mismatch
from fractal_model.model.fractal import NO_CLASS, FractalModel
from fractal_model.model.likelihood import Likelihood, pass_bits_by_term, term_names
from fractal_model.parallel.parts import LARGEST_PART, MapParts, map_in_this_process

IMAGES_BY_LEVEL = 256
"""Number of images from which the likelihood's terms (the pixels' colours and each level's guiding
pixels) are computed. The likelihood itself is computed from all images."""
_AT_ONCE_BY_LEVEL = 8


def measure_likelihood(
    model: FractalModel,
    split: PreparedSplit,
    progress: Callable[[int], None],
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
    indices = range(len(split)) if images is None else images
    return image_likelihood(
        model,
        partial(_read, split, indices, conditional),
        len(indices),
        progress,
        passes=passes,
        seed=seed,
        largest=largest,
        map_parts=map_parts,
    )


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
    start = partial(start_bits, compute, model, partial(_read, split, indices, False), seed)
    parts = map_parts(start, len(indices), largest=_AT_ONCE_BY_LEVEL)
    bits = torch.cat([rows for _, rows in parts]).mean((0, 1))
    return dict(zip(term_names(model.config), bits.tolist(), strict=True))


def _read(
    split: PreparedSplit, images: Sequence[int], conditional: bool, part: range
) -> tuple[Tensor, Tensor, list[int]]:
    """Read the images of a part, which is a range of positions in `images`, a list of indices."""
    pixels, labels, indices = read_batch(split, images[part.start : part.stop])
    if not conditional:
        labels = torch.full_like(labels, NO_CLASS)
    return pixels, labels, indices.tolist()
