"""The times of the levels: each excludes the others, and their sum is at most the run's."""

import time

import pytest
import torch

from fractal_model.common.compiler import has_compiler
from fractal_model.config.sampling import SamplingConfig
from fractal_model.costs.benchmark_levels import Stopwatch, measure_levels
from fractal_model.model.fractal import FractalModel
from fractal_model.sampling.sampler import Sampler
from tests.support import tiny_model

CPU = torch.device("cpu")
LABELS, SEEDS = torch.tensor([0, 1, 2]), [3, 4, 5]


def test_an_outer_part_s_time_stops_while_an_inner_part_runs(monkeypatch):
    moments = iter([0.0, 1.0, 11.0, 12.0, 32.0, 35.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    stopwatch = Stopwatch(CPU)
    with stopwatch.measure(0):
        for _ in range(2):
            with stopwatch.measure(1):
                pass
    assert stopwatch.seconds == {0: 5.0, 1: 30.0}


def test_the_levels_times_sum_to_at_most_the_run_s(kind):
    check_levels(tiny_model(kind), compiled=False)


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
def test_a_compiled_level_has_one_entry_with_the_pixels():
    check_levels(tiny_model("ar"), compiled=True)


def check_levels(model: FractalModel, *, compiled: bool) -> None:
    sampler = Sampler(model, SamplingConfig(guidance=3.0, compile=compiled))
    before = sampler(LABELS, SEEDS)
    flops = [1e9 * (i + 1) for i in range(len(model.config.levels) + 1)]
    start = time.perf_counter()
    levels = measure_levels(sampler, model.config, LABELS, SEEDS, flops=flops, device=CPU)
    elapsed = time.perf_counter() - start
    total = 3 * sum(level.seconds_per_image for level in levels)
    assert 0 < total <= elapsed
    assert sum(level.gflop_per_image for level in levels) == pytest.approx(sum(flops) / 1e9)
    assert len(levels) == len(flops) - compiled
    assert sampler(LABELS, SEEDS).equal(before)
