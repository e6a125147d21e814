"""One worker's training: forward, backward, clip, step. It does not depend on how it is launched.

Decided here: every random number of a step (label drop, masks, noise, dropout) is a pure function
of (seed, step, rank). So a resumed run gives the same weights, bit for bit, as a run without
interruption. A worker splits its share of a batch into parts that fit its memory. Workers exchange
gradients once in a step, with the last part. Each part is weighted by its number of images, so all
images count equally, however they are split over workers and parts.

A GPU must not wait until the host knows that a gradient is finite. AdamW therefore leaves the
weights as they are by itself if it is not, and the host learns it in the next step, before that
step's update.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fractal_model.checkpoints.checkpoint import Checkpoint
from fractal_model.common.compiler import prepare_compiler
from fractal_model.common.devices import copy_to
from fractal_model.common.errors import FractalError
from fractal_model.common.memory import keep_freed_memory
from fractal_model.config.model import ModelConfig
from fractal_model.config.training import TrainingConfig
from fractal_model.data.loader import Batch
from fractal_model.model.blocks import checkpoint_activations, compile_blocks
from fractal_model.model.fractal import NO_CLASS, FractalModel, initialise
from fractal_model.model.losses import training_loss
from fractal_model.training.averages import MovingAverages
from fractal_model.training.collectives import gather_from_ranks
from fractal_model.training.masks import noisy_context, training_guides, training_masks
from fractal_model.training.optimizer import new_optimizer, require_state, update_if
from fractal_model.training.schedule import learning_rate

StartWeights = Callable[[], Mapping[str, Tensor]]
"""Function that reads the weights that a training starts from, by name, on the CPU."""
Objective = Callable[[FractalModel], nn.Module]
"""Function that makes the module of the loss for a model. The module gets a part of a batch, images
and labels, and the step's random generator. It returns the mean loss of the part, a scalar."""


@dataclass(frozen=True)
class StepReport:
    """Result of one optimiser step. The tensors are scalars on the training device."""

    loss: Tensor
    """Mean training loss over the images of all workers, in nats."""
    gradient_norm: Tensor
    """Norm of the gradient of all parameters, before clipping."""
    learning_rate: float


class NotFiniteError(FractalError):
    """The loss or gradient of a batch is not finite on some rank. All ranks raise this error, and
    the weights stay as they were. `images`: images that may be the cause, as indices in the
    split."""

    def __init__(self, step: int, position: int, images: Sequence[int]) -> None:
        super().__init__(
            f"the loss or gradient is not finite at step {step} (position {position}), images "
            f"{list(images)}: look at these images, or lower base_learning_rate or clip_norm"
        )
        self.position = position
        self.images = tuple(images)


@dataclass(frozen=True)
class _Unconfirmed:
    """A step of which the host does not know yet whether its loss and gradient are finite."""

    report: StepReport
    indices: Tensor
    """Images of this rank, as indices in the split."""
    position: int
    """Position before the step."""
    local_loss: Tensor
    """Loss of this rank's images, a scalar."""
    is_finite: Tensor
    """True if loss and gradient are finite on all ranks, a bool scalar."""


class Trainer:
    """Model, optimiser and position (number of images seen) of one rank. `images`: number of
    training images. `start`: reads the weights to start from, by name; None: random weights, from
    the recipe's seed. `objective`: makes the loss; None: the training loss. FractalError: the
    recipe compiles blocks, but this machine has no compiler."""

    def __init__(
        self,
        model: ModelConfig,
        recipe: TrainingConfig,
        *,
        images: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        start: StartWeights | None = None,
        objective: Objective | None = None,
    ) -> None:
        self.recipe = recipe
        self._start = start
        self.position = 0
        self._images = images
        self._rank = rank
        self._world_size = world_size
        self._device = torch.device(device)
        keep_freed_memory(self._device)
        self.model = _new_model(model, recipe.seed, start).to(self._device).train()
        levels = (*self.model.levels, self.model.pixel)
        by_level = recipe.checkpointing_by_level(len(levels) - 1)
        for level, recompute in zip(levels, by_level, strict=True):
            checkpoint_activations(level, recompute)
        if recipe.compile:
            prepare_compiler()
            compile_blocks(self.model)
        if self._device.type == "cuda" and recipe.precision == "bfloat16":
            torch.set_float32_matmul_precision("high")  # TF32 where autocast keeps float32
        self.optimizer = new_optimizer(self.model, recipe)
        self.averages = MovingAverages(self.model, recipe.ema_decays)
        self._unconfirmed: _Unconfirmed | None = None
        self.objective = (
            _TrainingLoss(self.model, recipe) if objective is None else objective(self.model)
        )
        is_alone = world_size == 1
        self._loss = self.objective if is_alone else DistributedDataParallel(self.objective)

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def end_position(self) -> int:
        """Number of images that training has seen when the recipe ends."""
        return self.recipe.epochs * self._images

    @property
    def steps(self) -> int:
        """Number of steps so far; a skipped batch counts as a step."""
        return self.position // self.recipe.batch_size

    def restore(self, checkpoint: Checkpoint) -> None:
        """Load weights, optimiser state, moving averages and position. FractalError, before
        anything is loaded: the checkpoint has no state of the recipe's optimiser, or lacks a moving
        average that the recipe keeps."""
        state = require_state(checkpoint.optimizer, self.recipe)
        self.averages.require(checkpoint.averages)
        self._unconfirmed = None
        self.position = checkpoint.progress.position
        self.model.load_state_dict(checkpoint.weights)
        self.optimizer.load_state_dict(state)
        skipped = sum(start < self.position for start in checkpoint.progress.skipped)
        self.averages.load(checkpoint.averages, is_first=self.steps == skipped)

    def step(self, batch: Batch) -> StepReport:
        """Train on one batch; `batch` is this rank's share of it. No step may be unfinished.
        NotFiniteError: see `finish_step`."""
        assert self._unconfirmed is None
        self.start_step(batch)
        report = self.finish_step()
        assert report is not None
        return report

    def start_step(self, batch: Batch) -> StepReport | None:
        """Train on one batch; `batch` is this rank's share of it. With AdamW the host does not wait
        for a GPU to finish, with Muon it does. Return the report of the step started before, None
        if it is finished already. NotFiniteError: see `finish_step`; it is about the step started
        before, and the new one changes nothing either."""
        rate = self._set_learning_rate()
        seed = step_seed(self.recipe.seed, self.steps, self._rank)
        torch.manual_seed(seed)  # Dropout draws from the global generator.
        generator = torch.Generator().manual_seed(seed)
        dropped = torch.rand(batch.labels.shape, generator=generator) < self.recipe.label_drop
        labels = torch.where(dropped, NO_CLASS, batch.labels)
        self.model.zero_grad()
        local_loss, loss = self._backward(batch.images, labels, generator)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm).detach()
        before = self.finish_step()
        is_finite = (norm + loss).isfinite()  # All ranks have the same norm and loss.
        report = StepReport(loss, norm, rate)
        self._unconfirmed = _Unconfirmed(
            report, batch.indices, self.position, local_loss, is_finite
        )
        update_if(is_finite, self.optimizer)
        self.position += self.recipe.batch_size
        return before

    def finish_step(self) -> StepReport | None:
        """Wait for the step started last and return its report, None if it is finished already.
        NotFiniteError, on all ranks: its loss or gradient is not finite on some rank. It has
        changed nothing, and the position is the one before it."""
        step, self._unconfirmed = self._unconfirmed, None
        if step is None:
            return None
        if not bool(step.is_finite):
            self.position = step.position
            raise NotFiniteError(self.steps, step.position, _find_bad_images(step))
        self.averages.update()
        return step.report

    def reset(self) -> None:
        """Return to the state before the first step."""
        self._unconfirmed = None
        self.position = 0
        first = _new_model(self.model.config, self.recipe.seed, self._start)
        self.model.load_state_dict(first.state_dict())
        self.optimizer = new_optimizer(self.model, self.recipe)
        self.averages.reset()

    def skip_batch(self) -> None:
        """Count the next batch as seen without training on it."""
        self.position += self.recipe.batch_size

    def _backward(
        self, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Compute gradients from this rank's images; return the loss of these, and the mean loss
        over all ranks' images."""
        size, share = self.recipe.images_per_worker, self._world_size / self.recipe.batch_size
        parts = list(zip(images.split(size), labels.split(size), strict=True))
        total = torch.zeros((), device=self._device)
        ddp = self._loss if isinstance(self._loss, DistributedDataParallel) else None
        for number, (part, classes) in enumerate(parts):
            is_last = number == len(parts) - 1
            with nullcontext() if is_last or ddp is None else ddp.no_sync():
                with torch.autocast(
                    self._device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16"
                ):
                    loss = self._loss(copy_to(self._device, part), classes, generator)
                loss = loss * (len(part) * share)  # DDP averages gradients over ranks.
                loss.backward()
            total += loss.detach()
        if self._world_size == 1:
            return total, total
        mean = total / self._world_size
        torch.distributed.all_reduce(mean)
        return total, mean

    def _set_learning_rate(self) -> float:
        steps_per_epoch = self._images / self.recipe.batch_size
        rate = learning_rate(
            self.steps,
            peak=self.recipe.peak_learning_rate,
            warmup_steps=round(self.recipe.warmup_epochs * steps_per_epoch),
            total_steps=math.ceil(self.end_position / self.recipe.batch_size),
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate


def _find_bad_images(step: _Unconfirmed) -> list[int]:
    """Return the images that may be the cause, as indices in the split: the images of the ranks
    whose loss is not finite, or the whole batch if only the gradient is not finite."""
    shares = gather_from_ranks((step.indices.tolist(), bool(step.local_loss.isfinite())))
    bad_shares = [images for images, is_finite in shares if not is_finite]
    return [*chain.from_iterable(bad_shares or [images for images, _ in shares])]


class _TrainingLoss(nn.Module):
    """Runs the model on images and computes the training loss, as one module that DDP can wrap."""

    def __init__(self, model: FractalModel, recipe: TrainingConfig) -> None:
        super().__init__()
        self.model = model
        self._recipe = recipe
        self._tokens = [level.tokens for level in model.config.levels]

    def forward(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        noise = self._recipe.context_noise
        outcome = self.model(
            images,
            labels,
            masks=training_masks(self._tokens, generator, self._recipe.mask_ratio),
            guides=partial(training_guides, generator=generator),
            context=noisy_context(noise, generator) if noise else None,
        )
        return training_loss(outcome, red_weight=self.model.config.red_weight)


def _new_model(config: ModelConfig, seed: int, start: StartWeights | None) -> FractalModel:
    model = FractalModel(config)
    if start is None:
        initialise(model, torch.Generator().manual_seed(seed))
    else:
        model.load_state_dict(start())
    return model


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of all random numbers of one step on one rank: at most 63 bits, as torch requires."""
    state = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0]
    return int(state) >> 1
