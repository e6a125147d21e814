"""The section `training` of params.yaml: the recipe and the resources of a run."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from fractal_model.common.strict import NUMBER, Flag, Seed, StrictModel
from fractal_model.config.mask_ratio import MaskRatio
from fractal_model.config.model import MOST_LEVELS
from fractal_model.config.validation import ValidationConfig
from fractal_model.config.weights import Decays, ModelSource, average_name

MOST_WORKERS = 10_000
LARGEST_NUMBER = 1_000_000
"""Largest value of counts and times that have no natural limit; larger ones are typing errors."""
Count = Annotated[int, Field(ge=0, le=LARGEST_NUMBER), NUMBER]
Workers = Annotated[int, Field(ge=1, le=MOST_WORKERS), NUMBER]
AtLeastOne = Annotated[int, Field(ge=1, le=LARGEST_NUMBER), NUMBER]
Positive = Annotated[float, Field(gt=0, le=LARGEST_NUMBER, allow_inf_nan=False), NUMBER]
NotNegative = Annotated[float, Field(ge=0, le=LARGEST_NUMBER, allow_inf_nan=False), NUMBER]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), NUMBER]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), NUMBER]
OptimizerName = Literal["adamw", "muon"]
Checkpointing = Flag | Literal["selective"]
"""What the backward pass computes again: false: nothing, `selective`: all but matrix products and
attention, true: everything from the input of each block."""
CHECKPOINTING: tuple[Checkpointing, ...] = (False, "selective", True)
"""All choices, from the most memory to the least."""
DatasetName = Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=100)]
Amount = Annotated[float, Field(gt=0, le=1e15, allow_inf_nan=False), NUMBER]
"""Amount of a Ray resource, such as CPUs or bytes of memory; the limit is a petabyte."""

_RAY_NAMES = {"cpu": "CPU", "gpu": "GPU", "memory": "memory"}


def _require_ray_name(name: str) -> str:
    expected = _RAY_NAMES.get(name.strip().casefold(), name)
    if not name.strip():
        raise ValueError("a resource needs a name: CPU, GPU, memory, or one of the cluster's own")
    if name != expected:
        raise ValueError(f"Ray has no resource of this name, did you mean {expected}?")
    return name


# These settings change weights only by rounding, and by other random numbers if batches are split
# over another number of workers. A run that continues with more or fewer workers is the same run.
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
    "non_finite": "skip",  # the checkpoint stores which batches were left out
    "max_non_finite": 0,
    "start_from": None,  # the content of the weights decides, and has its own part in fingerprints
}
_ONE_DECAY = "ema_decay"
_VALIDATE_EVERY = 0
# These settings are newer than the first runs. At their defaults `exclude_if` leaves them out of
# the fingerprint, so that the fingerprint of an earlier run stays the same.
_VALIDATION = {"validate_every_epochs": _VALIDATE_EVERY, "validation": ValidationConfig()}
_END = {"register_checkpoint", "stop_after_epochs_without_gain"}
_NOT_IN_CURVES = {*_OPERATIONAL, *_VALIDATION, *_END, "seed", "ema_decays"} - {"start_from"}


class TrainingConfig(StrictModel):
    """Recipe and resources of one size's training (paper, appendix "implementation details")."""

    dataset: DatasetName
    """Name of the prepared data set, whose resolution is that of the size."""
    epochs: AtLeastOne
    """Number of times that training sees every image."""
    warmup_epochs: Count
    """Number of epochs in which the learning rate rises to its peak."""
    batch_size: AtLeastOne
    """Number of images of one step, over all workers."""
    base_learning_rate: Positive
    """Peak learning rate for a batch of 256; the peak is base_learning_rate · batch_size / 256."""
    weight_decay: NotNegative
    """Weight decay of all parameters except biases and others with one dimension."""
    betas: tuple[Share, Share]
    """Decay rates of AdamW's first and second moment."""
    optimizer: Annotated[OptimizerName, Field(exclude_if=lambda value: value == "adamw")] = "adamw"
    """Optimiser. `adamw`: AdamW for all parameters, as published. `muon`: Muon (Jordan et al. 2024)
    for the matrices of the transformer blocks at the same learning rate, AdamW for the others."""
    clip_norm: Positive
    """Largest norm of the gradient; a larger one is scaled down to it."""
    ema_decays: Decays = ()
    """Decays of the exponential moving averages of the weights that training keeps. Empty: none, as
    in the paper. The earlier key `ema_decay` is read as one decay, and as none if it is 0."""
    label_drop: Probability
    """Probability that a training image has the null embedding instead of its class's embedding.
    With 1 the model learns no class: only its unconditional likelihood and samples mean
    something."""
    mask_ratio: Annotated[MaskRatio, Field(exclude_if=lambda value: value == "published")] = (
        "published"
    )
    """Distribution of the share of sub-patches that a MAR level masks in training. `published`:
    normal with mean 1 and standard deviation 0.25, truncated to 0 … 1. A number above 0 and below
    1: the same, truncated to that number … 1 (MAR used 0.7). `uniform`: every number of sub-patches
    from 1 to all is equally likely, as in the likelihood bound."""
    context_noise: Annotated[Share, Field(exclude_if=lambda value: value == 0)] = 0.0
    """Probability that training replaces a known sub-patch that a level reads by the one at the
    same place of another random patch of the batch. Targets stay as they are."""
    holdout: Annotated[
        float, Field(ge=0, le=0.5, allow_inf_nan=False, exclude_if=lambda value: value == 0), NUMBER
    ] = 0.0
    """Share of the training images that training leaves out, and on which validation measures in
    place of the validation images: for tuning settings. 0: none."""
    flip: Flag
    """If true, half of the images are mirrored, chosen at random in every epoch."""
    precision: Literal["float32", "bfloat16"]
    """Number format of matrix products. `bfloat16`: autocast, with TF32 for the products that
    autocast leaves in float32. `float32`: full precision, without TF32."""
    activation_checkpointing: (
        Checkpointing | Annotated[tuple[Checkpointing, ...], Field(max_length=MOST_LEVELS + 1)]
    )
    """If true, only the input of each block is stored, and other activations are computed again in
    the backward pass. If `selective`, the results of matrix products and of attention are stored
    too, and only norms, activation functions and dropout are computed again, on a GPU also
    attention with dropout over more than 32 positions. Give one value for the whole model, or a
    list: one for each level from level 0, then one for the pixel network."""
    compile: Flag
    """Compile the transformer blocks with torch.compile."""
    workers: Workers
    """Largest number of workers of the training."""
    min_workers: Workers
    """Smallest number of workers. Training continues with fewer than `workers` if machines are
    lost, and with more when they come back."""
    resources_per_worker: dict[Annotated[str, AfterValidator(_require_ray_name)], Amount]
    """Resources of a worker by Ray's names: CPU, GPU, memory in bytes, or a custom resource."""
    accelerator_type: str | None
    """Ray's name of the GPU type that a worker's machine must have, such as H100; null: any
    machine."""
    images_per_worker: AtLeastOne
    """Number of images that a worker computes at once. It goes through its share of a batch in
    groups of this size and sums their gradients."""
    loader_processes: Annotated[int, Field(ge=0, le=1024), NUMBER]
    """Number of processes of each worker that read images; 0: the worker reads them itself."""
    checkpoint_every_epochs: AtLeastOne
    """Number of epochs between two checkpoints."""
    checkpoint_every_minutes: Positive
    """After this many minutes without a checkpoint, the next step that logs metrics writes one."""
    keep_checkpoints: AtLeastOne
    """Number of newest checkpoints that are kept; the best one is kept too."""
    log_every_steps: AtLeastOne
    """Number of steps from one logging of metrics to the next."""
    max_failures: Annotated[int, Field(ge=-1, le=LARGEST_NUMBER), NUMBER]
    """Largest number of restarts from the last checkpoint after workers fail; −1: no limit."""
    stall_seconds: Positive
    """Seconds after which a worker is stopped because it does not answer, or because other workers
    wait for its gradients. A worker that hangs while none waits, as a single one may, is stopped
    after half as long again. Give more than the first step takes, which includes compilation."""
    non_finite: Literal["skip", "roll-back", "stop"]
    """What happens after a batch with a loss or gradient that is not finite. `skip`: leave out the
    batch. `roll-back`: also return to the last checkpoint. `stop`: end the training."""
    max_non_finite: Count
    """Largest number of batches to skip as not finite; the next such batch ends the training."""
    seed: Seed
    """Seed of the order of the images and of all other random numbers."""
    start_from: Annotated[ModelSource | None, Field(exclude_if=lambda value: value is None)] = None
    """Model whose weights training starts from: the folder of a checkpoint or of an exported model,
    relative to params.yaml, or a registered version (`models:/NAME/VERSION`, `models:/NAME@ALIAS`),
    each with `#ema`, `#ema-0.999` or `#model` for other weights than those that it is served with.
    null: training starts from random weights."""
    validate_every_epochs: Annotated[
        Count, Field(exclude_if=lambda value: value == _VALIDATE_EVERY)
    ] = _VALIDATE_EVERY
    """Number of epochs between two validations; 0: none. A validation measures the held-out
    likelihood of a new checkpoint and draws a grid of samples. There is one after the last epoch
    too."""
    validation: Annotated[
        ValidationConfig, Field(exclude_if=lambda value: value == ValidationConfig())
    ] = ValidationConfig()
    """What a validation measures, and how long it may take."""
    register_checkpoint: Annotated[
        Literal["last", "best"],
        Field(
            validation_alias=AliasChoices("register", "register_checkpoint"),
            exclude_if=lambda value: value == "last",
        ),
    ] = "last"
    """Which checkpoint is registered: the last one, or the one with the fewest held-out bits per
    dimension."""
    stop_after_epochs_without_gain: Annotated[Count, Field(exclude_if=lambda value: value == 0)] = 0
    """Training ends after this number of epochs without a better held-out likelihood; 0: never."""

    @model_validator(mode="before")
    @classmethod
    def _read_one_decay(cls, settings: Any) -> Any:
        """Replace the earlier key `ema_decay` by `ema_decays`."""
        if not isinstance(settings, dict) or _ONE_DECAY not in settings:
            return settings
        if "ema_decays" in settings:
            raise ValueError(
                "ema_decay and ema_decays are both given: remove ema_decay, and list all decays in "
                "ema_decays"
            )
        settings = dict(settings)
        decay = settings.pop(_ONE_DECAY)
        is_none = decay == 0 and not isinstance(decay, bool)
        return settings | {"ema_decays": () if is_none else (decay,)}

    @model_serializer(mode="wrap")
    def _write_one_decay(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write at most one decay under the earlier key `ema_decay`, so that fingerprints of runs
        from before `ema_decays` stay the same."""
        settings: dict[str, Any] = handler(self)
        if len(self.ema_decays) <= 1 and "ema_decays" in settings:
            decays = settings.pop("ema_decays")
            settings[_ONE_DECAY] = decays[0] if decays else 0.0
        return settings

    @model_validator(mode="after")
    def _require_consistency(self) -> Self:
        if self.batch_size % self.workers:
            near = [n for n in range(1, 2 * self.workers + 1) if self.batch_size % n == 0]
            raise ValueError(
                f"batch_size {self.batch_size} does not divide by the {self.workers} workers: set "
                f"workers to {' or '.join(map(str, near[-4:]))}, for example, or batch_size to a "
                f"multiple of {self.workers}"
            )
        if self.min_workers > self.workers:
            raise ValueError(
                f"min_workers {self.min_workers} are more than workers {self.workers}: choose "
                f"1 … {self.workers}"
            )
        if self.context_noise and (least := self._images_at_a_time) < 2:
            raise ValueError(
                f"context_noise takes sub-patches of other images, but a worker computes {least} "
                f"image at a time (images_per_worker {self.images_per_worker}, batch_size "
                f"{self.batch_size} over {self.workers} workers): give each worker 2 or more, or "
                f"set context_noise to 0"
            )
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs} are more than epochs {self.epochs}: "
                f"lower warmup_epochs or raise epochs"
            )
        if not self.validate_every_epochs and self.needs_validation:
            raise ValueError(
                "register best and stop_after_epochs_without_gain need held-out likelihoods, but "
                "validate_every_epochs is 0: set validate_every_epochs to 1 or more"
            )
        return self

    @property
    def _images_at_a_time(self) -> int:
        return min(self.images_per_worker, self.batch_size // self.workers)

    @property
    def needs_validation(self) -> bool:
        """True if held-out likelihoods decide which checkpoint is registered or when training
        ends."""
        return self.register_checkpoint == "best" or self.stop_after_epochs_without_gain > 0

    @property
    def averages(self) -> tuple[str, ...]:
        """Names of the moving averages of the weights that training keeps, such as `ema-0.999`."""
        return tuple(map(average_name, self.ema_decays))

    def without_operational_settings(self) -> Self:
        """A copy in which all settings that do not decide the weights have fixed values, so that
        copies of equal runs are equal."""
        if not self.needs_validation:
            return self.model_copy(update=_OPERATIONAL | _VALIDATION)
        validation = self.validation.without_operational_settings()
        return self.model_copy(update=_OPERATIONAL | {"validation": validation})

    def curve_settings(self) -> dict[str, object]:
        """Settings that decide the curves of loss and held-out likelihood, apart from the seed."""
        return self.model_dump(exclude=_NOT_IN_CURVES)

    @classmethod
    def curve_defaults(cls) -> dict[str, object]:
        """Values of the settings that `curve_settings` leaves out at their defaults."""
        fields = cls.model_fields.items()
        return {
            name: field.default
            for name, field in fields
            if field.exclude_if is not None and name not in _NOT_IN_CURVES
        }

    def steps(self, epochs: int, images: int) -> int:
        """Number of steps in `epochs` epochs of `images` images, rounded, and 1 at least."""
        return max(1, round(epochs * images / self.batch_size))

    def checkpointing_by_level(self, levels: int) -> tuple[Checkpointing, ...]:
        """Return one entry for each of `levels` levels, then one for the pixel network: what it
        computes again. ValueError: `activation_checkpointing` has a wrong length."""
        entries = self.activation_checkpointing
        if not isinstance(entries, tuple):
            return (entries,) * (levels + 1)
        if len(entries) != levels + 1:
            raise ValueError(
                f"activation_checkpointing has length {len(entries)}: give one value, or "
                f"{levels + 1} values, one for each level and the pixel network"
            )
        return entries

    def accumulation(self, workers: int) -> int:
        """Number of groups of images that each of `workers` workers computes for one step. A group
        has at most `images_per_worker` images."""
        return math.ceil(math.ceil(self.batch_size / workers) / self.images_per_worker)

    @property
    def cpus(self) -> int:
        """CPUs that all workers together need, rounded up. Ray's smallest unit is 1/10,000 CPU."""
        needed = self.workers * self.resources_per_worker.get("CPU", 1)
        return math.ceil(round(needed, 4))

    @property
    def threads_per_worker(self) -> int:
        """Threads with which a worker computes on a CPU."""
        return max(1, int(self.resources_per_worker.get("CPU", 1)))

    @property
    def uses_gpu(self) -> bool:
        return "GPU" in self.resources_per_worker

    @property
    def peak_learning_rate(self) -> float:
        return self.base_learning_rate * self.batch_size / 256
