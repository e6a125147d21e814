"""The rows of the measurement on a GPU, the most important first.

Decided here: a row that fails, for example for lack of memory, says so in its place, and the next
one begins. A row that takes longer than its limit is ended, so that it cannot take the time of the
others. Its limit is what is left of all minutes, and never more than `LONGEST`.
"""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from fractal_model.common.gpus import gpu_of_driver
from fractal_model.common.memory import peak_memory
from fractal_model.config.params import Params, Size
from fractal_model.config.training import Checkpointing
from fractal_model.costs.benchmark import training_work
from fractal_model.costs.benchmark_levels import LevelCost, measure_levels
from fractal_model.costs.flops import sampling_flops, training_flops
from fractal_model.costs.roofline import Floor, sampling_floor, training_floor
from fractal_model.costs.shapes import training_shares
from fractal_model.model.fractal import FractalModel, initialise
from fractal_model.model.kernels.timing import ceiling_gflops, median_seconds
from fractal_model.sampling.sampler import Sampler
from tests.benchmarks.h100.kernels import profile_kernels
from tests.benchmarks.h100.published import published_sampling, published_training

LONGEST = 150.0
"""Seconds after which a row is ended."""
STEPS = 5
"""Timed training steps of a row."""

Result = dict[str, object]


@dataclass(frozen=True)
class Row:
    """One measurement with a name, which is its key in the results."""

    name: str
    measure: Callable[[torch.device], Result]


class TooLong(BaseException):  # Compilers catch every Exception of what they try.
    """A row was ended."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """TooLong: the block takes longer than this. An alarm that was set before goes on."""

    def end(*arguments: object) -> None:
        raise TooLong(f"not finished after {seconds:.1f} s")

    start = time.monotonic()
    previous = signal.signal(signal.SIGALRM, end)
    outer, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, previous)
        left = max(0.001, outer - (time.monotonic() - start)) if outer else 0.0
        signal.setitimer(signal.ITIMER_REAL, left)


def all_rows(params: Params, published: Path | None) -> list[Row]:
    """The rows for the sizes in `params`. `published`: a folder with the published code, which is
    measured beside ours, or None."""
    rows = [Row("ceiling", measure_ceilings)]
    rows += [_train(params, "mar-l", 32), _train(params, "mar-64", 64)]
    rows += _beside(params, published, "mar-l", 32) + _beside(params, published, "mar-64", 64)
    rows += [_sample(params, "mar-64", 64), _sample(params, "ar-64", 64)]
    rows += [_train(params, "ar-64", 64), _profile(params, "mar-l", 32)]
    rows += [_sample(params, "mar-l", 64), _sample(params, "mar-64", 256)]
    rows += [_sample(params, "mar-l", 1), _sample(params, "ar-64", 1)]
    rows += [
        _train(params, "mar-64", 64, recomputed=("selective",) * 3),
        _train(params, "mar-l", 32, recomputed=("selective", True, True, True)),
        _train(params, "mar-l", 32, recomputed=(False, True, True, True)),
        _train(params, "mar-l", 32, recomputed=(False, False, True, True)),
        _train(params, "mar-l", 32, recomputed=(False,) * 4),
        _train(params, "mar-64", 64, recomputed=(False, True, True)),
        _train(params, "mar-64", 64, recomputed=(False,) * 3),
        _train(params, "mar-l", 32, compiled=False),
    ]
    rows += [_train(params, size, 32) for size in ("mar-b", "mar-h")]
    rows += [_sample(params, size, 64) for size in ("mar-b", "mar-h")]
    rows += [_sample(params, "mar-l", 256), _profile(params, "mar-64", 64)]
    return [*rows, _sample(params, "ar-64", 256), _sample(params, "mar-h", 256)]


def measure_ceilings(device: torch.device) -> Result:
    """The fastest matrix product in each precision, in GFLOP/s."""
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return {name: ceiling_gflops(kind, device) for name, kind in kinds.items()}


def _train(
    params: Params,
    name: str,
    batch: int,
    *,
    recomputed: tuple[Checkpointing, ...] | None = None,
    compiled: bool | None = None,
) -> Row:
    """A training step of a size as its recipe has it, or with other levels `recomputed` in the
    backward pass or not `compiled`."""
    size, label = params.size(name), f"train {name}, batch {batch}"
    changes: dict[str, object] = {}
    if recomputed is not None:
        changes["activation_checkpointing"] = recomputed
        words = {True: "yes", False: "no"}
        label += f", recomputed {'-'.join(words.get(choice, choice) for choice in recomputed)}"
    if compiled is not None:
        changes["compile"] = compiled
        label += ", compiled" if compiled else ", not compiled"
    size = size.model_copy(update={"training": size.training.model_copy(update=changes)})
    return Row(label, lambda device: measure_training(size, batch, device))


def measure_training(size: Size, batch: int, device: torch.device) -> Result:
    """Time a training step of a size on noise, in all and by level."""
    _, work = training_work(size.model, size.training, batch, device)
    with peak_memory(device) as peak:
        start = time.perf_counter()
        for _ in range(work.warm_ups):
            work.step()
        first = time.perf_counter() - start
    seconds = median_seconds(work.step, STEPS, device)
    waits = count_waits(work.step) if device.type == "cuda" else None
    shares = training_shares(size.model, size.training.mask_ratio)
    flops = batch * sum(training_flops(size.model, shares, activation_checkpointing=False))
    assert work.levels is not None
    return {
        "seconds_per_step": seconds,
        "seconds_of_the_first_steps": first,
        "waits_of_the_host": waits,
        "useful_tflops": flops / seconds / 1e12,
        "peak_memory_gb": peak.added_bytes / 1e9,
        "levels": _beside_floors(work.levels(), training_floor(size, batch), batch, device),
    }


def count_waits(step: Callable[[], object]) -> int:
    """Number of operations in a step for which the host waits until the GPU has finished."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


def _sample(params: Params, name: str, batch: int) -> Row:
    size = params.size(name)
    return Row(
        f"sample {name}, batch {batch}", lambda device: measure_sampling(size, batch, device)
    )


def measure_sampling(size: Size, batch: int, device: torch.device) -> Result:
    """Time sampling of a batch with the size's settings, in all and by level. A batch that loads
    the kernels or compiles them comes before, in a MAR model with one iteration of each level."""
    model = FractalModel(size.model)
    initialise(model, torch.Generator().manual_seed(0))
    sampling = size.sampling.model_copy(update={"compile": True})
    sampler = Sampler(model.to(device).eval(), sampling)
    labels, seeds = torch.arange(batch) % size.model.num_classes, range(batch)
    gflops = sampling_flops(size.model, size.sampling)
    with torch.autocast(device.type, torch.bfloat16), peak_memory(device) as peak:
        start = time.perf_counter()
        warm_up = sampler
        if not size.model.is_autoregressive:
            once = {"iterations": (1,) * len(size.model.levels)}
            warm_up = Sampler(model, sampling.model_copy(update=once))
        warm_up(labels, seeds)
        warming = time.perf_counter() - start
        seconds = median_seconds(lambda: sampler(labels, seeds), 1, device)
        levels = measure_levels(sampler, size.model, labels, seeds, flops=gflops, device=device)
    floors = sampling_floor(size, batch)
    return {
        "seconds_per_image": seconds / batch,
        "seconds_of_the_warm_up": warming,
        "tflops": batch * sum(gflops) / seconds / 1e12,
        "peak_memory_gb": peak.added_bytes / 1e9,
        "levels": _beside_floors(levels, floors, batch, device),
    }


def _profile(params: Params, name: str, batch: int) -> Row:
    size = params.size(name)

    def measure(device: torch.device) -> Result:
        model, work = training_work(size.model, size.training, batch, device)
        for _ in range(work.warm_ups):
            work.step()
        return {"kernels": profile_kernels(model, work.step)}

    return Row(f"kernels of a training step, {name}, batch {batch}", measure)


def _beside(params: Params, folder: Path | None, name: str, batch: int) -> list[Row]:
    """The published code's training step and sampling of the same size and batch."""
    if folder is None:
        return []
    size = params.size(name)

    def train(device: torch.device) -> Result:
        step = published_training(folder, size, batch)
        step(), step()
        return {"seconds_per_step": median_seconds(step, STEPS, device)}

    def sample(device: torch.device) -> Result:
        draw = published_sampling(folder, size, batch)
        return {"seconds_per_image": median_seconds(draw, 1, device) / batch}

    return [
        Row(f"published code: train {name}, batch {batch}", train),
        Row(f"published code: sample {name}, batch {batch}", sample),
    ]


def _beside_floors(
    levels: tuple[LevelCost, ...], floors: tuple[Floor, ...], batch: int, device: torch.device
) -> list[Result]:
    """The measured seconds of a batch by level, beside the least time that the GPU needs. Levels
    that were measured together have the sum of theirs."""
    gpu = gpu_of_driver(torch.cuda.get_device_name()) if device.type == "cuda" else None
    rows: list[Result] = []
    for level in levels:
        own = [floor for floor in floors if floor.level in level.level]
        row: Result = {"level": level.level, "seconds": batch * level.seconds_per_image}
        if own:
            row |= {
                "gflop": sum(floor.flops for floor in own) / 1e9,
                "gigabytes_at_least": sum(floor.bytes for floor in own) / 1e9,
                "kernels_at_least": sum(floor.kernels for floor in own),
                "seconds_at_least": None if gpu is None else sum(f.seconds(gpu) for f in own),
            }
        rows.append(row)
    return rows
