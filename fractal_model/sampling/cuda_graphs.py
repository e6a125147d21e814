"""Functions of tensors as CUDA graphs, which start thousands of small kernels at once.

Decided here: each set of shapes has its own graph, captured at the second call, because some shapes
come only once. Beyond a limit of graphs the function runs without one. A process captures or runs
one graph at a time, whichever threads ask for it. The graphs of one `Graphs` share memory.
"""

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_MOST_GRAPHS = 16
"""Largest number of graphs of one function; further shapes run without a graph."""
_WARM_UPS = 2
"""Number of calls of the function just before the capture, in which libraries and compilers do
their one-time work. A capture must not contain this work."""
_LOCK = threading.Lock()


@dataclass
class _Graph:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor | None]
    result: Tensor


class Graphs:
    """CUDA graphs of one function, one graph for each combination of shapes. Every call must pass a
    function that computes the same; a graph keeps what the first one did. Its operations may depend
    on the shapes and types of the arguments, never on their numbers. A graph is used only with the
    weights that it was captured with."""

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
        """Return `function(*arguments)`, by a graph if there is one for these shapes. The arguments
        are None or on one CUDA device. `weights` are all other tensors that the function reads."""
        shapes = (None if a is None else (a.shape, a.dtype, a.device) for a in arguments)
        key = (_autocast_type(), *shapes, *(weight.data_ptr() for weight in weights))
        self._seen[key] += 1
        can_capture = self._seen[key] > 1 and len(self._graphs) < _MOST_GRAPHS
        if key not in self._graphs and not can_capture:
            return function(*arguments)
        with _LOCK, torch.cuda.device(next(a.device for a in arguments if a is not None)):
            if key not in self._graphs:
                self._graphs[key] = self._capture(function, arguments)
            captured = self._graphs[key]
            for static, argument in zip(captured.inputs, arguments, strict=True):
                if static is not None and argument is not None:
                    static.copy_(argument)
            captured.graph.replay()
            return captured.result.clone()

    def _capture(
        self, function: Callable[..., Tensor], arguments: tuple[Tensor | None, ...]
    ) -> _Graph:
        inputs = [None if a is None else a.clone() for a in arguments]
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        dtype = _autocast_type()
        # No autocast cache: autocast frees its copies of weights before the graph runs.
        with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None, cache_enabled=False):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    function(*inputs)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = function(*inputs)
        return _Graph(graph, inputs, result)


def _autocast_type() -> torch.dtype | None:
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
