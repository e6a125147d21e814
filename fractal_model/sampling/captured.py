"""A function of tensors as CUDA graphs: thousands of small kernels, started as one.

Decided here: one graph for each set of shapes, as they come; past a limit of graphs the function
is called as it is. The graphs share one pool of memory, for they never run at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

_MOST_GRAPHS = 16
_WARM_UPS = 2
"""Calls before the capture, in which libraries and compilers do what they do once."""


@dataclass
class _Graph:
    graph: torch.cuda.CUDAGraph
    arguments: list[Tensor | None]
    result: Tensor


class Captured:
    """Called like `function`, whose arguments are tensors, or None, on one CUDA device. What it
    does must depend on their shapes and types alone; weights that it uses must keep their place."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._graphs: dict[Hashable, _Graph] = {}
        self._pool: tuple[int, int] | None = None

    @torch.no_grad()
    def __call__(self, *arguments: Tensor | None) -> Tensor:
        key = (_autocast_type(), *(None if a is None else (a.shape, a.dtype) for a in arguments))
        if key not in self._graphs and len(self._graphs) < _MOST_GRAPHS:
            self._graphs[key] = self._capture(arguments)
        if key not in self._graphs:
            return self._function(*arguments)
        found = self._graphs[key]
        for held, given in zip(found.arguments, arguments, strict=True):
            if held is not None:
                held.copy_(given)
        found.graph.replay()
        return found.result.clone()

    def _capture(self, arguments: tuple[Tensor | None, ...]) -> _Graph:
        held = [None if a is None else a.clone() for a in arguments]
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        to = _autocast_type()
        # Copies of weights that autocast keeps would be gone when the graph runs.
        with torch.autocast("cuda", dtype=to, enabled=to is not None, cache_enabled=False):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    self._function(*held)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph, pool=self._pool):
                result = self._function(*held)
        return _Graph(graph, held, result)


def _autocast_type() -> torch.dtype | None:
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
