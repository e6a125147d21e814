"""Quality of a model's weights during training: held-out likelihood and a grid of samples.

Decided here: images, masks, classes and seeds are fixed, so that measurements differ only because
the weights differ.
"""

import torch
from torch import Tensor

from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.validation import ValidationConfig
from fractal_model.data.order import epoch_permutation
from fractal_model.data.prepared import PreparedSplit
from fractal_model.evaluation.measure_likelihood import measure_likelihood
from fractal_model.generation.pictures import sample_grid
from fractal_model.generation.sample_images import sample_images
from fractal_model.model.fractal import FractalModel
from fractal_model.model.likelihood import Likelihood
from fractal_model.parallel.parts import MapParts, map_in_this_process


def measure_held_out(
    model: FractalModel,
    held_out: PreparedSplit,
    settings: ValidationConfig,
    *,
    map_parts: MapParts = map_in_this_process,
) -> Likelihood:
    """Measure the likelihood, without classes, of `settings.images` held-out images.

    FractalError: the images are not of the model's resolution, or one image alone does not fit the
    memory.
    """
    images = epoch_permutation(settings.seed, 0, len(held_out))[: settings.images]
    return measure_likelihood(
        model,
        held_out,
        lambda done: None,
        images=images.tolist(),
        passes=settings.passes,
        seed=settings.seed,
        map_parts=map_parts,
    )


def draw_grid(
    model: FractalModel,
    sampling: SamplingConfig,
    settings: ValidationConfig,
    *,
    map_parts: MapParts = map_in_this_process,
) -> Tensor:
    """Sample a grid of images, uint8 (3, H, W), with one row for each class shown. `settings` has
    the numbers of rows and columns; the classes are evenly spread."""
    rows = min(settings.grid_classes, model.config.num_classes)
    classes = torch.linspace(0, model.config.num_classes - 1, rows).round().long()
    labels = classes.repeat_interleave(settings.grid_columns)
    seeds = range(settings.seed, settings.seed + len(labels))
    # A compiled sampler needs a minute to start, longer than a few images take.
    plain = sampling.model_copy(update={"compile": False})
    parts = dict(sample_images(model, plain, labels, seeds, map_parts=map_parts))
    images = torch.cat([parts[part].cpu() for part in sorted(parts, key=lambda part: part.start)])
    return sample_grid(images, labels, per_class=settings.grid_columns)
