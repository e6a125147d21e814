"""The kernels of a training step by name and by part of the model, from torch's profiler.

Decided here: a kernel belongs to the part that was at work when the host started it. On a CPU,
which starts no kernels, the operations take their place.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

from torch.profiler import profile, record_function

from fractal_model.costs.benchmark_levels import part_names
from fractal_model.costs.training_levels import watch_parts
from fractal_model.model.fractal import FractalModel

MOST_KERNELS = 40
"""Number of kernels in the result: those with the largest share of the time."""
_MARK = "part "


def profile_kernels(model: FractalModel, step: Callable[[], object]) -> list[dict[str, object]]:
    """Run a training step of `model` and return its kernels: name, part of the model, number of
    starts and seconds of all of them together; the longest first."""

    def mark(part: int) -> None:
        with record_function(f"{_MARK}{part}"):
            pass

    names = (*part_names(model.config), "rest")
    with profile() as profiler, watch_parts(model, mark):
        mark(len(names) - 1)
        step()
    return collect_kernels(profiler.events(), names)


def collect_kernels(events: Sequence[Any], parts: Sequence[str]) -> list[dict[str, object]]:
    """Sum up the kernels of a profile. `parts`: the names of the parts by number."""
    ordered = sorted(events, key=lambda event: event.time_range.start)
    marks = [(e.time_range.start, int(e.name[len(_MARK) :])) for e in ordered if _is_mark(e)]
    starts = [start for start, _ in marks]
    has_kernels = any(event.kernels for event in ordered)
    sums: defaultdict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0.0])
    for event in ordered:
        index = bisect_right(starts, event.time_range.start) - 1
        if index < 0 or _is_mark(event):
            continue
        kernels = [(kernel.name, kernel.duration) for kernel in event.kernels]
        for name, microseconds in kernels if has_kernels else _operation(event):
            total = sums[name, parts[marks[index][1]]]
            total[0] += 1
            total[1] += microseconds / 1e6
    rows = [
        {"kernel": name, "part": part, "starts": starts, "seconds": seconds}
        for (name, part), (starts, seconds) in sums.items()
    ]
    return sorted(rows, key=itemgetter("seconds"), reverse=True)[:MOST_KERNELS]


def _is_mark(event: Any) -> bool:
    return bool(event.name.startswith(_MARK) and event.name[len(_MARK) :].isdigit())


def _operation(event: Any) -> list[tuple[str, float]]:
    seconds = event.self_cpu_time_total
    return [(event.name, seconds)] if seconds > 0 else []
