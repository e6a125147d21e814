"""What of a run each level took: exclusive, and no more than there was."""

import time

import pytest
import torch

from fractal_model.common.compiler import has_compiler
from fractal_model.config.sampling import SamplingConfig
from fractal_model.costs.benchmark_levels import Stopwatch, level_costs
from fractal_model.model.fractal import FractalModel
from fractal_model.sampling.sampler import Sampler
from tests.support import tiny_model

CPU = torch.device("cpu")
LABELS, SEEDS = torch.tensor([0, 1, 2]), [3, 4, 5]


def test_the_outer_time_stands_still_while_an_inner_part_runs(monkeypatch):
    moments = iter([0.0, 1.0, 11.0, 12.0, 32.0, 35.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    stopwatch = Stopwatch(CPU)
    with stopwatch.of(0):
        for _ in range(2):
            with stopwatch.of(1):
                pass
    assert stopwatch.seconds == {0: 5.0, 1: 30.0}


def test_the_levels_together_are_no_more_than_the_run(kind):
    check(tiny_model(kind), compiled=False)


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
def test_what_is_compiled_stands_with_the_pixels():
    check(tiny_model("ar"), compiled=True)


def check(model: FractalModel, *, compiled: bool) -> None:
    sampler = Sampler(model, SamplingConfig(guidance=3.0, compile=compiled))
    before = sampler(LABELS, SEEDS)
    flops = [1e9 * (i + 1) for i in range(len(model.config.levels) + 1)]
    start = time.perf_counter()
    found = level_costs(sampler, model.config, LABELS, SEEDS, flops=flops, device=CPU)
    elapsed = time.perf_counter() - start
    together = 3 * sum(level.seconds_per_image for level in found)
    assert 0 < together <= elapsed
    assert sum(level.gflop_per_image for level in found) == pytest.approx(sum(flops) / 1e9)
    assert len(found) == len(flops) - compiled
    assert sampler(LABELS, SEEDS).equal(before)
