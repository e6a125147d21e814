"""The training recipe: what a person may change about a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fractal_model.config import PositiveInt, StrictModel

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]


_OPERATIONAL = (
    "cpus_per_worker",
    "checkpoint_every_epochs",
    "keep_checkpoints",
    "log_every_steps",
    "max_failures",
)


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
    activation_checkpointing: bool
    """Keep a block's input alone and compute the rest again on the way back."""
    workers: PositiveInt
    cpus_per_worker: PositiveInt
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)]
    checkpoint_every_epochs: PositiveInt
    keep_checkpoints: PositiveInt
    log_every_steps: PositiveInt
    max_failures: Annotated[int, Field(ge=-1)]
    """How often a failed group of workers is started again from its last checkpoint; −1: always."""
    seed: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _fits(self) -> TrainingConfig:
        if self.batch_size % self.workers:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of the {self.workers} workers"
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs} must be fewer than epochs {self.epochs}"
            )
        return self

    def deciding(self) -> TrainingConfig:
        """The same with what does not change the weights set to 1, for comparison with others."""
        return self.model_copy(update=dict.fromkeys(_OPERATIONAL, 1))

    @property
    def peak_learning_rate(self) -> float:
        return self.base_learning_rate * self.batch_size / 256
