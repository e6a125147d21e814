"""Measure how long sampling, a training step or a likelihood pass takes, with random weights.

Decided here: each training step starts at position 0, so that all steps draw the same masks and
take equally long. The operations of training and likelihood are counted in a separate step. The
operations of sampling follow from the architecture (`costs.flops`), because many small products
take long to count.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import psutil
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from fractal_model.common.memory import peak_memory
from fractal_model.config.model import ModelConfig
from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.training import TrainingConfig
from fractal_model.costs.benchmark_levels import LevelCost, measure_levels
from fractal_model.costs.flops import (
    executed_training_flops,
    published_sampling_flops,
    sampling_flops,
)
from fractal_model.costs.training_levels import measure_training_levels
from fractal_model.data.loader import Batch
from fractal_model.model.fractal import NO_CLASS, FractalModel, initialise
from fractal_model.model.kernels.linear import FLOP_FORMULAS
from fractal_model.model.kernels.timing import ceiling_gflops, median_seconds
from fractal_model.model.likelihood import pass_bits
from fractal_model.sampling.sampler import Sampler
from fractal_model.training.trainer import Trainer

Mode = Literal["sample", "train", "likelihood"]
Precision = Literal["float32", "bfloat16"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Measurement:
    """The result of a benchmark. A value is None if the mode lacks it or nobody asked for it."""

    mode: Mode
    batch: int
    dtype: Precision
    device: str
    threads: int
    parameters: int
    repeats: int
    seconds_per_step: float
    """Median seconds to sample a batch, to train one step or to compute one likelihood pass."""
    seconds_per_image: float
    gflop_per_image: float
    published_gflop_per_image: float | None
    """GFLOP that the published sampler needs for an image; None if the mode is not sampling."""
    ceiling_gflops: float
    """GFLOP/s of the fastest matrix product in `dtype`, measured in this process."""
    ceiling_gflops_float32: float
    ceiling_gflops_bfloat16: float
    utilisation: float
    """GFLOP/s that the benchmark reached, divided by the ceiling."""
    peak_memory_gb: float
    """Peak in GB: resident memory of the process on a CPU, allocated memory on a GPU."""
    reference_seconds_per_image: float | None
    """Seconds per image of the sampler without caches, measured in one run."""
    times_faster_than_reference: float | None
    levels: tuple[LevelCost, ...] | None
    """Costs of each level in sampling or training, from level 0 down, measured in one more run."""

    def as_json(self) -> dict[str, object]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Work:
    """The functions that a benchmark calls, without arguments: the timed step and, for sampling,
    the slower sampler to compare with."""

    step: Callable[[], object]
    flops: float | None
    """Operations of a step. With None, `measure` counts them in one more step."""
    published_flops: float | None = None
    reference: Callable[[], object] | None = None
    levels: Callable[[], tuple[LevelCost, ...]] | None = None
    """Function that runs the step once more and returns the costs of each level."""
    warm_ups: int = 2
    """Number of runs before the timed ones. Training needs two: the first allocates the optimiser's
    moments at its end, so only the second reaches the peak of memory."""


def sampling_work(
    config: ModelConfig, sampling: SamplingConfig, batch: int, device: torch.device
) -> tuple[FractalModel, Work]:
    """Return a model with random weights, and a `Work` whose step samples a batch with it.
    FractalError: the settings do not fit the model's levels."""
    model = _random_model(config).to(device)
    flops = sampling_flops(config, sampling)
    published = batch * sum(published_sampling_flops(config, sampling))
    labels, seeds = torch.arange(batch) % config.num_classes, range(batch)
    fast, slow = Sampler(model, sampling), Sampler(model, sampling, cached=False)
    return model, Work(
        lambda: fast(labels, seeds),
        batch * sum(flops),
        published,
        reference=lambda: slow(labels, seeds),
        levels=lambda: measure_levels(fast, config, labels, seeds, flops=flops, device=device),
        warm_ups=1,
    )


def training_work(
    config: ModelConfig, recipe: TrainingConfig, batch: int, device: torch.device
) -> tuple[FractalModel, Work]:
    """Return a model with random weights, and a `Work` whose step is one training step on a batch
    of noise."""
    recipe = recipe.model_copy(update={"batch_size": batch, "images_per_worker": batch})
    trainer = Trainer(config, recipe, images=max(batch, 1000), device=device)
    indices = torch.arange(batch)
    data = Batch(_noise(config, batch), indices % config.num_classes, indices)

    def step() -> None:
        trainer.position = 0
        trainer.start_step(data)

    gflops = [n / 1e9 for n in executed_training_flops(config, recipe)]
    levels = partial(measure_training_levels, trainer.model, step, batch, gflops)
    return trainer.model, Work(step, flops=None, levels=levels)


def likelihood_work(
    config: ModelConfig, batch: int, device: torch.device
) -> tuple[FractalModel, Work]:
    """Return a model with random weights, and a `Work` whose step is one likelihood pass, without
    classes, over a batch of noise."""
    model = _random_model(config).to(device)
    images, labels = _noise(config, batch).to(device), torch.full((batch,), NO_CLASS).to(device)
    seeds = list(range(batch))
    return model, Work(lambda: pass_bits(model, images, seeds, passes=1, labels=labels), flops=None)


def measure(
    mode: Mode,
    model: FractalModel,
    work: Work,
    *,
    batch: int,
    dtype: Precision,
    repeats: int,
    reference: bool,
    by_level: bool = True,
    warm_up: bool = True,
    trace: Path | None = None,
) -> Measurement:
    """Time the step of `work` and compare its speed with the ceiling (the fastest matrix product).
    `reference` also times the sampler without caches, `by_level` each level. With `trace`, profile
    one more step and write that file, in Chrome's trace format."""
    device = model.device
    autocast = dtype == "bfloat16" and mode != "train"  # The trainer has its own autocast.
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        memory_before = _used_memory(device)
        with peak_memory(device) as peak:
            if warm_up:
                for _ in range(work.warm_ups):
                    work.step()
            else:
                seconds = median_seconds(work.step, repeats, device)
        if warm_up:  # Timed without the watch on memory, which takes 2.5 % of two cores' time.
            seconds = median_seconds(work.step, repeats, device)
        if trace is not None:
            with profile() as profiler:
                work.step()
            profiler.export_chrome_trace(str(trace))
        levels = work.levels() if by_level and work.levels is not None else None
        # Counted last, because counting takes more memory than the step and ends compilation.
        flops = count_flops(work.step) if work.flops is None else work.flops
        uncached = None
        if reference and work.reference is not None:
            uncached = median_seconds(work.reference, 1, device) / batch
    ceilings = {name: ceiling_gflops(kind, device) for name, kind in _DTYPES.items()}
    published = work.published_flops
    return Measurement(
        mode=mode,
        batch=batch,
        dtype=dtype,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        threads=torch.get_num_threads(),
        parameters=sum(weight.numel() for weight in model.parameters()),
        repeats=repeats,
        seconds_per_step=seconds,
        seconds_per_image=seconds / batch,
        gflop_per_image=flops / batch / 1e9,
        published_gflop_per_image=None if published is None else published / batch / 1e9,
        ceiling_gflops=ceilings[dtype],
        ceiling_gflops_float32=ceilings["float32"],
        ceiling_gflops_bfloat16=ceilings["bfloat16"],
        utilisation=flops / seconds / 1e9 / ceilings[dtype],
        peak_memory_gb=(memory_before + peak.added_bytes) / 1e9,
        reference_seconds_per_image=uncached,
        times_faster_than_reference=None if uncached is None else uncached * batch / seconds,
        levels=levels,
    )


def _used_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


class _NoModules(ModuleTracker):
    """A module tracker that does nothing. The usual one in torch's operation counter has hooks that
    keep the activations that activation checkpointing frees."""

    def __enter__(self) -> None: ...

    def __exit__(self, *exception: object) -> None: ...


def count_flops(step: Callable[[], object]) -> float:
    """Run a step and return the number of its operations, padding rows (see
    `model.kernels.row_padding`) included. Attention runs as separate matrix products here, because
    the counter does not count the fused attention of a CPU."""
    counter = FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS)
    counter.mod_tracker = _NoModules()
    with sdpa_kernel(SDPBackend.MATH), counter:
        step()
    return float(counter.get_total_flops())


def _random_model(config: ModelConfig) -> FractalModel:
    model = FractalModel(config)
    initialise(model, torch.Generator().manual_seed(0))
    return model.eval()


def _noise(config: ModelConfig, batch: int) -> torch.Tensor:
    shape = (batch, 3, config.image_size, config.image_size)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
