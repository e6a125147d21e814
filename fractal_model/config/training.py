"""The training recipe: what a person may change about a run."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fractal_model.common.strict import PositiveInt, StrictModel

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]

# What the weights do not depend on, or only through the rounding and the random numbers of another
# split of the same batches: a run that goes on with more or fewer workers is the same run.
_OPERATIONAL = {
    "workers": 1,
    "min_workers": 1,
    "resources_per_worker": {"CPU": 1.0},
    "accelerator_type": None,
    "images_per_worker": 1,
    "activation_checkpointing": False,
    "compile": False,
    "loader_processes": 0,
    "checkpoint_every_epochs": 1,
    "checkpoint_every_minutes": 1.0,
    "keep_checkpoints": 1,
    "log_every_steps": 1,
    "max_failures": 1,
    "stall_seconds": 1.0,
    "non_finite": "skip",  # what was left out is in the checkpoint
    "max_non_finite": 0,
}


class TrainingConfig(StrictModel):
    """Recipe and resources of one size (paper, appendix "implementation details")."""

    dataset: str
    epochs: PositiveInt
    warmup_epochs: Annotated[int, Field(ge=0)]
    batch_size: PositiveInt
    """Images a step, over all workers."""
    base_learning_rate: Positive
    """At a batch of 256; the peak is this · batch_size / 256."""
    weight_decay: NotNegative
    """Not applied to biases and other one-dimensional parameters."""
    betas: tuple[Share, Share]
    clip_norm: Positive
    ema_decay: Share
    """Of the exponential moving average of the weights that is kept beside them; 0: none, as
    published."""
    label_drop: Share
    """Probability that an image trains the null embedding instead of its class."""
    flip: bool
    precision: Literal["float32", "bfloat16"]
    """bfloat16: autocast, and TF32 for what it leaves in float32; float32 is never rounded so."""
    activation_checkpointing: bool | tuple[bool, ...]
    """Keep a block's input alone and compute the rest again on the way back: everywhere, or one
    answer for each level from the top and one for the pixel network."""
    compile: bool
    """Compile the transformer blocks with torch.compile."""
    workers: PositiveInt
    """The most that are used."""
    min_workers: PositiveInt
    """Where fewer than `workers`: training goes on with fewer when machines are lost, and takes
    more when they come back."""
    resources_per_worker: dict[str, Annotated[float, Field(gt=0)]]
    """By Ray's names: CPU, GPU, memory in bytes, or a resource of the cluster's own."""
    accelerator_type: str | None
    """As Ray calls it, such as H100: only machines that have it are used."""
    images_per_worker: PositiveInt
    """That a worker takes at a time; the rest of its share of a batch follows before the step
    (gradient accumulation)."""
    loader_processes: Annotated[int, Field(ge=0)]
    """Of each worker, for reading images; 0: the worker reads itself."""
    checkpoint_every_epochs: PositiveInt
    checkpoint_every_minutes: Positive
    """Looked at when metrics are logged."""
    keep_checkpoints: PositiveInt
    """The last ones; the best stays beside them."""
    log_every_steps: PositiveInt
    max_failures: Annotated[int, Field(ge=-1)]
    """How often a failed group of workers is started again from its last checkpoint; −1: always."""
    stall_seconds: Positive
    """A worker that does not answer for so long is torn down, and one that the others wait for in
    an exchange of gradients; a first step, with compilation, has to fit."""
    non_finite: Literal["skip", "roll-back", "stop"]
    """What follows a batch whose loss or gradient is not finite: it is left out, or training also
    returns to the last checkpoint, or it ends."""
    max_non_finite: Annotated[int, Field(ge=0)]
    """Such batches after which training ends in any case."""
    seed: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _fits(self) -> TrainingConfig:
        if self.batch_size % self.workers:
            near = [n for n in range(1, 2 * self.workers + 1) if self.batch_size % n == 0]
            raise ValueError(
                f"batch_size {self.batch_size} does not divide by the {self.workers} workers: "
                f"choose workers that do (near are {', '.join(map(str, near[-4:]))}), or a "
                f"multiple of {self.workers} as batch_size"
            )
        if self.min_workers > self.workers:
            raise ValueError(
                f"min_workers {self.min_workers} are more than workers {self.workers}: choose "
                f"1 … {self.workers}"
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs} must be fewer than epochs {self.epochs}"
            )
        return self

    def deciding(self) -> TrainingConfig:
        """The same with what does not decide about the run set to one value, to compare runs."""
        return self.model_copy(update=_OPERATIONAL)

    def checkpointed(self, levels: int) -> tuple[bool, ...]:
        """Of each level, and of the pixel network. ValueError: not that many answers."""
        given = self.activation_checkpointing
        if isinstance(given, bool):
            return (given,) * (levels + 1)
        if len(given) != levels + 1:
            raise ValueError(
                f"activation_checkpointing has {len(given)} entries: give true or false, or "
                f"{levels + 1}, for {levels} levels and the pixel network"
            )
        return given

    def accumulation(self, workers: int) -> int:
        """Times that each of so many workers goes through the model before a step."""
        return math.ceil(math.ceil(self.batch_size / workers) / self.images_per_worker)

    @property
    def uses_gpu(self) -> bool:
        return "GPU" in self.resources_per_worker

    @property
    def peak_learning_rate(self) -> float:
        return self.base_learning_rate * self.batch_size / 256
