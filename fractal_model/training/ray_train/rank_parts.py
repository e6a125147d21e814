"""Work that all ranks of a training do together, within a time limit and without harm to training.

Decided here: an error on one rank is raised on all ranks, so that none waits for another. The ranks
compute with a second model, which has the same tensors and is not compiled: training's own model
keeps its state, and no block is compiled again for other shapes. The limit is checked before
each block of the second model, so that it also ends a single image that takes minutes.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from fractal_model.common.devices import compute_device
from fractal_model.common.errors import FractalError, one_line
from fractal_model.config.model import ModelConfig
from fractal_model.model.blocks import Block
from fractal_model.model.fractal import FractalModel
from fractal_model.parallel.parts import StartWork, run_halving
from fractal_model.training.collectives import gather_from_ranks

Value = TypeVar("Value")


class RankParts:
    """A `MapParts` that all ranks call together. Each rank computes an equal share of the images,
    `chunk` images at a time, and gets the rows of all. `seconds`: the time limit, from now on."""

    def __init__(self, rank: int, world_size: int, *, chunk: int, seconds: float) -> None:
        self._rank, self._world_size = rank, world_size
        self._chunk, self._seconds = chunk, seconds
        self._deadline = time.monotonic() + seconds

    def run(self, function: Callable[[], Value]) -> Value:
        """Call `function` and return its value. FractalError, on all ranks: it failed on one, or
        the time is over on one."""
        failure: str | None = None
        try:
            self._require_time()
            value = function()
        except Exception as error:
            failure = one_line(error)
        failures = gather_from_ranks(failure)
        for rank, text in enumerate(failures):
            if text is not None:
                raise FractalError(text if len(set(failures)) == 1 else f"rank {rank}: {text}")
        return value

    def __call__(
        self, start: StartWork, total: int, *, largest: int
    ) -> Iterator[tuple[range, Tensor]]:
        """Yield the parts of all ranks. FractalError: see `run`."""
        bounds = [total * rank // self._world_size for rank in range(self._world_size + 1)]
        share = range(bounds[self._rank], bounds[self._rank + 1])
        rows = self.run(lambda: self._compute(start, share, min(largest, self._chunk)))
        for part, part_rows in gather_from_ranks((share, rows)):
            if part_rows is not None:
                yield part, part_rows

    def copy_model(self, config: ModelConfig, weights: Mapping[str, Tensor]) -> FractalModel:
        """Return a model with the tensors `weights`, in evaluation mode, that raises a FractalError
        once the time is over."""
        copy = FractalModel.without_memory(config)
        copy.load_state_dict(weights, assign=True)
        for module in copy.modules():
            if isinstance(module, Block):
                module.feed_forward.register_forward_pre_hook(lambda *_: self._require_time())
        return copy.eval()

    def _compute(self, start: StartWork, share: range, chunk: int) -> Tensor | None:
        if not share:
            return None
        work = start(compute_device())
        rows, first = [], share.start
        while first < share.stop:
            self._require_time()
            part = range(first, min(first + chunk, share.stop))
            part_rows, fitting = run_halving(work, part)
            rows.append(part_rows)
            first, chunk = part.stop, min(chunk, fitting)
        return torch.cat(rows)

    def _require_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise FractalError(
                f"measuring takes more than {self._seconds:.3g} s, the least of "
                f"validation.timeout_seconds, half of stall_seconds and validation.max_share of "
                f"the time between validations: lower validation.images or passes, or raise it"
            )
