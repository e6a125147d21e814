"""Try a proposed size for one training step, with the trainer and images of the data set.

Decided here: the step runs in a child process with as many threads as one worker has. If memory
runs out, the system ends the child first, and this process learns of it.
"""

import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch

from fractal_model.common.devices import compute_device
from fractal_model.common.errors import FractalError
from fractal_model.common.plurals import count_of
from fractal_model.config.params import Size
from fractal_model.data.loader import Batch
from fractal_model.data.prepared import open_prepared
from fractal_model.model.kernels.timing import median_seconds
from fractal_model.sizing.choices import Proposal
from fractal_model.sizing.proposal import Request, measured_speed, propose
from fractal_model.training.trainer import Trainer

_LONG_STEP = 20.0
"""A first step that takes this many seconds is not repeated. It takes a little longer than others,
because it allocates memory."""


@dataclass(frozen=True)
class StepTime:
    """The time of a training step of one worker."""

    seconds_per_image: float
    cpu_share: float
    """Share of its only CPU that the worker had; less than 1 if other programs use it. 1 if the
    worker has a GPU or several CPUs, which it never keeps busy all the time."""


class OutOfMemory(FractalError):
    """The trial step needed more memory than there is."""


def propose_and_try(request: Request, name: str, place: Path | str) -> tuple[Proposal, float]:
    """Propose a size called `name`, try it on the prepared data set at `place`, and propose again
    with the measured speed, until the architecture stays. Return the proposal and the speed of the
    whole machine in operations per second. FractalError: not even one image fits the memory."""
    proposal = propose(request)
    while True:
        size = proposal.size(name)
        try:
            step = time_step(size, place)
        except OutOfMemory:
            if size.training.images_per_worker == 1:
                raise
            request = replace(request, most_at_a_time=size.training.images_per_worker // 2)
            proposal = propose(request)
            continue
        speed = measured_speed(size, step.seconds_per_image)
        request = replace(request, speed=speed, cpu_share=step.cpu_share)
        tried = proposal.models
        proposal = propose(request)
        if proposal.models == tried:
            return proposal, speed
        # From now on the model becomes no wider, so this ends.
        width = proposal.size(name).model.levels[0].width
        request = replace(request, most_width=width)


def time_step(size: Size, place: Path | str) -> StepTime:
    """Train the size for a few steps on images of the prepared data set at `place`, and return the
    time of one step of one worker. OutOfMemory: the images that a worker computes at a time do
    not fit the memory. FractalError: the data set or the loss of the step is damaged."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_time_step, size, place).result()
        except (BrokenProcessPool, torch.OutOfMemoryError) as error:
            images = count_of(size.training.images_per_worker, "image")
            raise OutOfMemory(
                f"a training step of {images} does not fit the memory: free some, choose a smaller "
                f"architecture, or register the data set with a lower resolution"
            ) from error


def _time_step(size: Size, place: Path | str) -> StepTime:
    with suppress(OSError):  # The largest value: the system ends this process before any other.
        Path("/proc/self/oom_score_adj").write_text("1000")
    recipe = size.training
    if not recipe.uses_gpu:
        torch.set_num_threads(recipe.threads_per_worker)
    images = recipe.images_per_worker
    split = open_prepared(place, "train")
    examples = split.__getitems__([i % len(split) for i in range(images)])
    batch = Batch(
        torch.stack([example.image for example in examples]),
        torch.tensor([example.label for example in examples]),
        torch.tensor([example.index for example in examples]),
    )
    alone = recipe.model_copy(update={"batch_size": images, "workers": 1, "min_workers": 1})
    trainer = Trainer(size.model, alone, images=len(split), device=compute_device())

    def step() -> None:
        trainer.step(batch)

    wall, processors = time.monotonic(), time.process_time()
    seconds = median_seconds(step, 1, trainer.device)
    if seconds < _LONG_STEP:
        seconds = median_seconds(step, 3, trainer.device)
    used = (time.process_time() - processors) / (time.monotonic() - wall)
    has_one_cpu = not recipe.uses_gpu and torch.get_num_threads() == 1
    return StepTime(seconds / images, min(1.0, used) if has_one_cpu else 1.0)
