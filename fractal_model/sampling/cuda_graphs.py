"""Functions of tensors as CUDA graphs: thousands of small kernels, started as one.

Decided here: one graph for each set of shapes, captured when they come a second time, for some come
once; past a limit of graphs the function is called as it is. All graphs of a process take turns,
captures too, whatever threads ask for them; those of one object share memory.
"""

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_MOST_GRAPHS = 16
_WARM_UPS = 2
"""Calls before the capture, in which libraries and compilers do what is done once."""
_TURN = threading.Lock()


@dataclass
class _Graph:
    graph: torch.cuda.CUDAGraph
    arguments: list[Tensor | None]
    result: Tensor


class Graphs:
    """The graphs of one function, the same in all calls. Its operations must depend on the shapes
    and types of its arguments alone, and on the weights, whose addresses are part of the key."""

    def __init__(self) -> None:
        self._graphs: dict[Hashable, _Graph] = {}
        self._seen: Counter[Hashable] = Counter()
        self._pool: torch.cuda._POOL_HANDLE | None = None

    @torch.no_grad()
    def __call__(
        self,
        function: Callable[..., Tensor],
        *arguments: Tensor | None,
        weights: Iterable[Tensor] = (),
    ) -> Tensor:
        """`function(*arguments)`, these on one CUDA device or None."""
        shapes = (None if a is None else (a.shape, a.dtype, a.device) for a in arguments)
        key = (_autocast_type(), *shapes, *(weight.data_ptr() for weight in weights))
        self._seen[key] += 1
        wanted = self._seen[key] > 1 and len(self._graphs) < _MOST_GRAPHS
        if key not in self._graphs and not wanted:
            return function(*arguments)
        with _TURN, torch.cuda.device(next(a.device for a in arguments if a is not None)):
            if key not in self._graphs:
                self._graphs[key] = self._capture(function, arguments)
            captured = self._graphs[key]
            for held, argument in zip(captured.arguments, arguments, strict=True):
                if held is not None and argument is not None:
                    held.copy_(argument)
            captured.graph.replay()
            return captured.result.clone()

    def _capture(
        self, function: Callable[..., Tensor], arguments: tuple[Tensor | None, ...]
    ) -> _Graph:
        held = [None if a is None else a.clone() for a in arguments]
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        to = _autocast_type()
        # Copies of weights that autocast keeps would be gone when the graph runs.
        with torch.autocast("cuda", dtype=to, enabled=to is not None, cache_enabled=False):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    function(*held)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = function(*held)
        return _Graph(graph, held, result)


def _autocast_type() -> torch.dtype | None:
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
