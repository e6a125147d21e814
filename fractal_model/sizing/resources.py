"""Propose what a training runs on, how its state is kept, and how its progress is measured.

Decided here: a training on a CPU has a worker for each core, as many as divide the batch; one on
GPUs has a worker for each GPU; fewer if memory is short. A worker computes as many images at a time
as its memory holds.
"""

import math
from functools import lru_cache
from typing import NamedTuple

from torch import nn

from fractal_model.common.compiler import has_compiler
from fractal_model.common.errors import FractalError
from fractal_model.config.model import ModelConfig
from fractal_model.config.training import CHECKPOINTING, Checkpointing
from fractal_model.costs.training_memory import training_memory
from fractal_model.model.fractal import FractalModel
from fractal_model.sizing.choices import Choice, Entry
from fractal_model.sizing.machine import Machine
from fractal_model.sizing.recipe import FEW_IMAGES, Plan

_POINTS = 6
"""Smallest number of validations in a training, the one at its end included."""
_PROCESS_BYTES = 1.2e9
"""Memory of a worker without its model, with some to spare: Python, torch and Ray."""
_MEMORY_SHARE = 0.7
"""Largest share of the free memory that the estimate of a training may take."""
_CPU_GROUP, _GPU_GROUP, _GOOD_GROUP = 16, 64, 8
"""Largest number of images that a worker computes at a time on a CPU and on a GPU, and the number
below which activations are computed twice to make room for more."""
_MOST_CPUS, _MOST_LOADERS = 8, 6
_COMPILE_SECONDS = 3600
"""Compiling takes a minute or more, so a training that is shorter than this is not compiled."""
_VALIDATION_SHARE = 0.05
"""Share of a training's work that may go into all its validations."""
_MOST_VALIDATED, _PASSES = 1000, 2
_MOST_ROWS, _COLUMNS = 8, 4


class _Fit(NamedTuple):
    """How a worker computes its images, and the gigabytes that it needs."""

    images: int
    checkpointing: Checkpointing
    gigabytes: float


def propose_resources(plan: Plan, batch: int, averages: int, fewest: int = 1) -> Entry:
    """The settings of `training` about workers and memory. A worker gets `fewest` images of a batch
    or more, if the batch has as many. FractalError: a training step of one image does not fit the
    memory."""
    machine = plan.machine
    workers, fit = _fit_workers(plan, batch, averages, max(1, batch // fewest))
    cpus = max(1, machine.cores // workers)
    resources = {"CPU": min(cpus, _MOST_CPUS) if machine.gpus else cpus}
    resources |= {"GPU": 1} if machine.gpus else {}
    loaders = max(0, min(_MOST_LOADERS, cpus - 2)) if machine.gpus else 0
    compiled = machine.gpus > 0 and plan.seconds > _COMPILE_SECONDS and has_compiler()
    return {
        "precision": Choice(machine.precision, _precision_reason(machine)),
        "activation_checkpointing": Choice(
            fit.checkpointing,
            f"without, fewer than {_GOOD_GROUP} images fit" if fit.checkpointing else "",
        ),
        "compile": Choice(compiled, "worth a minute of a long training" if compiled else ""),
        "workers": Choice(workers, f"this machine has {machine.words}"),
        "min_workers": Choice(1, "fewer go on if memory runs short"),
        "resources_per_worker": Choice(resources),
        "accelerator_type": Choice(None),
        "images_per_worker": Choice(
            fit.images, f"{fit.gigabytes:.1f} GB each, {machine.memory_bytes / 1e9:.0f} GB are free"
        ),
        "loader_processes": Choice(loaders),
    }


@lru_cache
def count_parameters(model: ModelConfig) -> tuple[int, int]:
    """Number of all parameters, and of those in the weights of linear layers."""
    network = FractalModel.without_memory(model)
    linear = [part.weight for part in network.modules() if isinstance(part, nn.Linear)]
    return sum(p.numel() for p in network.parameters()), sum(w.numel() for w in linear)


def _fit_workers(plan: Plan, batch: int, averages: int, most: int) -> tuple[int, _Fit]:
    """Return the number of workers, at most `most`, and how each computes its images: one worker
    for each GPU or, without GPUs, for each core; fewer if the batch or the memory asks for it."""
    most = min(plan.machine.gpus or plan.machine.cores, most)
    for workers in (n for n in range(most, 0, -1) if batch % n == 0):
        fit = _fit_memory(plan, math.ceil(batch / workers), workers, averages)
        if fit is not None:
            return workers, fit
    raise FractalError(
        f"a training step of one image does not fit the memory, of which "
        f"{plan.machine.memory_bytes / 1e9:.1f} GB are free: free some, choose a smaller "
        f"architecture, or register the data set with a lower resolution"
    )


def _fit_memory(plan: Plan, share: int, workers: int, averages: int) -> _Fit | None:
    """Choose how each of `workers` workers computes its `share` images of a batch. None: not even
    one image fits the memory."""
    machine = plan.machine
    parameters, weights = count_parameters(plan.model)
    room = machine.memory_bytes * _MEMORY_SHARE
    if not machine.gpus:
        room = room / workers - _PROCESS_BYTES
    most = min(_GPU_GROUP if machine.gpus else _CPU_GROUP, share, plan.most_at_a_time)
    groups = [1 << power for power in range(int(math.log2(most)), -1, -1)]
    good = min(_GOOD_GROUP, groups[0])
    for checkpointing, least in zip(CHECKPOINTING, (good, good, 1), strict=True):
        for images in (group for group in groups if group >= least):
            needed = training_memory(
                plan.model,
                parameters=parameters,
                weights=weights,
                images=images,
                gpus=workers,
                precision=machine.precision,
                averages=averages,
                activation_checkpointing=checkpointing,
                optimizer=plan.optimizer,
                mask_ratio=plan.mask_ratio,
                on_gpu=machine.gpus > 0,
            ).total
            if needed < room:
                return _Fit(images, checkpointing, needed / 1e9)
    return None


def _precision_reason(machine: Machine) -> str:
    if machine.precision == "bfloat16":
        return "as published; the GPU is built for it"
    return "the GPU has no fast bfloat16" if machine.gpus else "as digits: there is no GPU"


def propose_upkeep(plan: Plan, steps: int, averages: int, sample_seconds: float) -> Entry:
    """The settings of `training` about checkpoints, reports and validation, which measures the
    weights and each of their moving `averages`. `sample_seconds`: seconds that drawing one image
    takes on the whole machine."""
    every = max(1, (plan.epochs - 1) // (_POINTS - 1))
    held_out = plan.images.held_out
    entry = {
        "checkpoint_every_epochs": Choice(every),
        "checkpoint_every_minutes": Choice(30),
        "keep_checkpoints": Choice(2),
        "log_every_steps": Choice(max(1, min(50, steps // 100)), "about a hundred points a curve"),
        "max_failures": Choice(2),
        "stall_seconds": Choice(600 if plan.machine.gpus else 300),
        "non_finite": Choice("skip"),
        "max_non_finite": Choice(3),
        "seed": Choice(0),
        "validate_every_epochs": Choice(every if held_out else 0, _points_reason(plan, every)),
    }
    if not held_out:
        return entry
    few = plan.images.train < FEW_IMAGES
    return entry | {
        "validation": _propose_validation(
            plan, plan.epochs // every, (1 + averages) * sample_seconds, 1 + averages
        ),
        "register": Choice("best", "few images: the last one may overfit")
        if few
        else Choice("last", "as published"),
        "stop_after_epochs_without_gain": Choice(3 * every, "few images: end when it overfits")
        if few
        else Choice(0, "too many images to overfit"),
    }


def _points_reason(plan: Plan, every: int) -> str:
    if not plan.images.held_out:
        return "the data set has no held-out images"
    return f"{plan.epochs // every} points on the curve"


def _propose_validation(plan: Plan, points: int, sample_seconds: float, weights: int) -> Choice:
    """Held-out images and a sample grid that take a small share of the time, if the likelihood is
    measured for a number of `weights`. `sample_seconds` is for one image of each of them."""
    # A forward pass of all sub-patches takes at most half of a training step with its masks.
    passes = 1 if plan.model.is_autoregressive else _PASSES
    affordable = _VALIDATION_SHARE * plan.seen / (points * weights * passes * 0.5)
    images = max(min(plan.images.held_out, _MOST_VALIDATED, int(affordable)), 1)
    between = plan.seconds / points
    room = max(1, int(_VALIDATION_SHARE * between / sample_seconds))
    rows = min(plan.images.classes, _MOST_ROWS, room)
    columns = max(1, min(_COLUMNS, room // rows))
    likelihood = images * weights * passes * 0.5 * plan.seconds / plan.seen
    seconds = 10 * (likelihood + rows * columns * sample_seconds)
    return Choice(
        {
            "images": images,
            "passes": passes,
            "grid_classes": rows,
            "grid_columns": columns,
            "timeout_seconds": math.ceil(min(max(seconds, 120), 3600) / 60) * 60,
        },
        "at most a twentieth of the work",
    )
