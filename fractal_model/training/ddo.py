"""Direct discriminative optimisation: fine-tuning of an AR model with its own samples.

Zheng et al. 2025, "Direct Discriminative Optimization: Your Likelihood-Based Visual Generative
Model is Secretly a GAN Discriminator". A frozen copy of the model draws samples. The model is
trained so that its likelihood ratio to the copy tells real images from these samples.

Decided here: one process trains, with the trainer of an ordinary training and another loss. A batch
has pairs of a real image and a sample. The model is in evaluation mode, because dropout would add
noise to the ratio. Labels are dropped at the recipe's rate for both, so the likelihood without
classes is tuned too. Each round is a training of its own, with an optimiser, a schedule and random
numbers of its own.

Shapes: P pairs, S side of an image.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fractal_model.common.errors import FractalError
from fractal_model.common.strict import LARGEST_SEED
from fractal_model.config.ddo import DDOConfig
from fractal_model.config.params import Size
from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.training import TrainingConfig
from fractal_model.data.loader import Batch, train_loader
from fractal_model.data.order import stream_indices
from fractal_model.data.prepared import PreparedSplit
from fractal_model.model.fractal import FractalModel, Rows, exact_guides
from fractal_model.model.losses import nats_by_term
from fractal_model.model.randomness import stream_seed
from fractal_model.training.trainer import Trainer

_TRAINING, _SAMPLES = 0, 1


class Samples(NamedTuple):
    """Images that a frozen copy of the model has drawn, with the class of each."""

    images: Tensor
    """Pixels: uint8 (N, 3, S, S)."""
    labels: Tensor
    """Class numbers: int64 (N,)."""


@dataclass(frozen=True)
class TuningStep:
    """Outcome of one step. A ratio is log p(x) of the model minus that of the frozen copy, in nats
    for a whole image, before the step and as the mean over the batch."""

    position: int
    """Number of real images seen in this round."""
    loss: float
    real_ratio: float
    sampled_ratio: float
    gradient_norm: float
    learning_rate: float

    def metrics(self) -> dict[str, float]:
        """The values as metrics of a run in MLflow. The loss is no training loss of `train-fractal`
        and has a name of its own."""
        return {
            "ddo_loss": self.loss,
            "ddo_ratio_real": self.real_ratio,
            "ddo_ratio_samples": self.sampled_ratio,
            "gradient_norm": self.gradient_norm,
            "learning_rate": self.learning_rate,
        }


def discriminative_loss(real: Tensor, sampled: Tensor, *, alpha: float, beta: float) -> Tensor:
    """Return −mean log σ(β · real) − α · mean log σ(−β · sampled), a scalar. `real` and `sampled`
    are the log-likelihood ratios of real images and of samples, (P,) each, in nats."""
    return F.softplus(-beta * real).mean() + alpha * F.softplus(beta * sampled).mean()


def require_exact_likelihood(size: Size) -> None:
    """Raise FractalError if a level of the size is MAR."""
    if not size.model.is_autoregressive:
        raise FractalError(
            f"the size {size.name} has MAR levels, whose likelihood is known only as a bound, but "
            f"tune-ddo compares exact likelihoods: choose a size whose generators are all ar"
        )


def tuning_recipe(size: Size, settings: DDOConfig, number: int) -> TrainingConfig:
    """Return the recipe of round `number`, counted from 1: one pass over the round's images."""
    recipe = size.training
    batch = settings.batch_size or recipe.batch_size
    changes = {
        "epochs": 1,
        "warmup_epochs": 0,
        "batch_size": batch,
        "base_learning_rate": settings.learning_rate * 256 / batch,
        "workers": 1,
        "min_workers": 1,
        # A pair has two images, and the frozen copy computes them too.
        "images_per_worker": max(1, recipe.images_per_worker // 2),
        # This process runs a Prefect flow: hooks of Prefect give forked processes exit code 1.
        "loader_processes": 0,
        "seed": stream_seed(recipe.seed, _TRAINING, number),
        # A changed context has no exact likelihood. A round is not validated.
        "context_noise": 0.0,
        "register_checkpoint": "last",
        "stop_after_epochs_without_gain": 0,
    }
    return recipe.model_copy(update=changes)


def round_images(size: Size, settings: DDOConfig, images: int) -> int:
    """Return the number of real images of a round: the share of the recipe's, rounded up to whole
    batches. `images`: number of training images."""
    batch = settings.batch_size or size.training.batch_size
    return max(1, math.ceil(settings.share * size.training.epochs * images / batch)) * batch


def sample_plan(
    size: Size, settings: DDOConfig, images_per_class: Sequence[int], number: int
) -> tuple[SamplingConfig, Tensor, range]:
    """Return what the frozen copy draws in round `number`: its sampling settings, the class of each
    of the N samples (N,), in the proportions of `images_per_class`, and their seeds. The samples
    are those of the model's distribution: without guidance, and with unscaled logits."""
    count = settings.samples or round_images(size, settings, sum(images_per_class))
    first = stream_seed(size.training.seed, _SAMPLES, number) % (LARGEST_SEED + 2 - count)
    shares = torch.tensor(images_per_class).cumsum(0) / sum(images_per_class)
    places = (torch.arange(count) + 0.5) / count
    labels = torch.searchsorted(shares, places, right=True)
    plain = SamplingConfig(compile=size.sampling.compile)
    return plain, labels, range(first, first + count)


def tune_round(
    reference: FractalModel,
    samples: Samples,
    split: PreparedSplit,
    recipe: TrainingConfig,
    settings: DDOConfig,
    *,
    images: int,
    device: torch.device,
) -> tuple[Trainer, Iterator[TuningStep]]:
    """Return the trainer of a round, which starts from the weights of `reference`, and an iterator
    that takes one step for each item. A round sees `images` real images. FractalError: a loss or
    gradient is not finite."""
    reference = reference.to(device).eval().requires_grad_(False)
    objective = partial(_Discrimination, reference, settings)
    trainer = Trainer(
        reference.config,
        recipe,
        images=images,
        device=device,
        start=reference.state_dict,
        objective=objective,
    )
    trainer.model.eval()
    return trainer, _take_steps(trainer, samples, split)


def _take_steps(trainer: Trainer, samples: Samples, split: PreparedSplit) -> Iterator[TuningStep]:
    recipe, objective = trainer.recipe, trainer.objective
    assert isinstance(objective, _Discrimination)
    loader = train_loader(
        split,
        seed=recipe.seed,
        position=0,
        batch_size=recipe.batch_size,
        num_workers=recipe.loader_processes,
        flip=recipe.flip,
        end_position=trainer.end_position,
    )
    for real in loader:
        interval = {"start": trainer.position, "count": len(real.labels)}
        drawn = stream_indices(seed=recipe.seed, size=len(samples.labels), **interval).tolist()
        pairs = Batch(
            torch.stack([real.images, samples.images[drawn]], dim=1),
            torch.stack([real.labels, samples.labels[drawn]], dim=1),
            real.indices,
        )
        objective.ratios.clear()
        step = trainer.step(pairs)
        real_ratio, sampled_ratio = torch.cat(objective.ratios).mean(0).tolist()
        yield TuningStep(
            trainer.position,
            step.loss.item(),
            real_ratio,
            sampled_ratio,
            step.gradient_norm.item(),
            step.learning_rate,
        )


class _Discrimination(nn.Module):
    """Computes the discriminative loss of pairs, as an objective of `Trainer`."""

    def __init__(self, reference: FractalModel, settings: DDOConfig, model: FractalModel) -> None:
        super().__init__()
        self.model = model
        self.ratios: list[Tensor] = []
        """Ratios of the pairs of the last step, (P, 2) for each part of the batch."""
        self._reference = reference
        self._settings = settings

    def forward(self, pairs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Return the loss of P pairs (P, 2, 3, S, S) uint8 with labels (P, 2). Each pair has a real
        image, then a sample."""
        images, classes = pairs.flatten(0, 1), labels.flatten()
        with torch.no_grad():
            before = log_likelihoods(self._reference, images, classes)
        ratios = (log_likelihoods(self.model, images, classes) - before).unflatten(0, (-1, 2))
        self.ratios.append(ratios.detach())
        real, sampled = ratios.unbind(1)
        alpha, beta = self._settings.alpha, self._settings.beta
        return discriminative_loss(real, sampled, alpha=alpha, beta=beta).float()


def log_likelihoods(model: FractalModel, images: Tensor, labels: Tensor) -> Tensor:
    """Return log p(x) of each image under an AR model, in nats for the whole image, (B,) float64.
    `images` are (B, 3, S, S) uint8, `labels` (B,) classes or NO_CLASS."""
    outcome = model(images, labels, masks=_refuse_masks, guides=exact_guides)
    return -nats_by_term(outcome, len(images)).sum(1) * images[0].numel()


def _refuse_masks(level: int, rows: Rows) -> Tensor:
    raise AssertionError(f"level {level} is MAR and has no exact likelihood")
