"""Quality of a model's weights during training: held-out likelihood and a grid of samples.

Decided here: images, masks, classes and seeds are fixed, so that measurements differ only because
the weights differ.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.validation import ValidationConfig
from fractal_model.data.order import epoch_permutation
from fractal_model.data.prepared import PreparedSplit
from fractal_model.evaluation.held_out_likelihood import measure_likelihood
from fractal_model.generation.pictures import sample_grid
from fractal_model.generation.sample_images import sample_images
from fractal_model.model.fractal import FractalModel
from fractal_model.model.likelihood import Likelihood


@dataclass(frozen=True)
class ModelQuality:
    """Quality of one set of weights."""

    likelihood: Likelihood
    """Bits per dimension of the held-out images."""
    grid: Tensor
    """Picture of samples, uint8 (3, H, W), with one row of samples for each of some classes."""


def measure_quality(
    model: FractalModel,
    held_out: PreparedSplit,
    sampling: SamplingConfig,
    settings: ValidationConfig,
) -> ModelQuality:
    """Measure the likelihood of images of the split `held_out` under a model, and draw samples by
    `sampling` as a grid. `settings` have the number of images, the passes, the grid's size and the
    seed.

    FractalError: the images are not of the model's resolution, or one image alone does not fit the
    memory.
    """
    images = epoch_permutation(settings.seed, 0, len(held_out))[: settings.images]
    likelihood = measure_likelihood(
        model,
        held_out,
        lambda done: None,
        images=images.tolist(),
        passes=settings.passes,
        seed=settings.seed,
    )
    return ModelQuality(likelihood, _draw_grid(model, sampling, settings))


def _draw_grid(model: FractalModel, sampling: SamplingConfig, settings: ValidationConfig) -> Tensor:
    rows = min(settings.grid_classes, model.config.num_classes)
    classes = torch.linspace(0, model.config.num_classes - 1, rows).round().long()
    labels = classes.repeat_interleave(settings.grid_columns)
    seeds = range(settings.seed, settings.seed + len(labels))
    # Compiling the sampler takes a minute, which is more than it saves on a few images.
    plain = sampling.model_copy(update={"compile": False})
    parts = dict(sample_images(model, plain, labels, seeds))
    images = torch.cat([parts[part].cpu() for part in sorted(parts, key=lambda part: part.start)])
    return sample_grid(images, labels, per_class=settings.grid_columns)
