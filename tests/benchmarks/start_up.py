"""Measure how long the command line takes to answer: `python -m tests.benchmarks.start_up`.

It prints the median processor and wall-clock seconds of help, of a mistyped command and of a
mistyped option of every command. It also prints the memory of a training worker without a model.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from fractal_model.cli.app import COMMANDS
from fractal_model.common.console import console

RUNS = 5
WORKER_MEMORY = """
import psutil, fractal_model.training.ray_train.worker
print(sum(part.private_dirty for part in psutil.Process().memory_maps()))
"""


def measure(words: list[str]) -> tuple[float, float]:
    """Return the median processor and wall-clock seconds of `fractal WORDS` after a warm-up run."""
    rows = []
    for _ in range(RUNS + 1):
        start, before = time.perf_counter(), os.times()
        subprocess.run([sys.executable, "-m", "fractal_model", *words], capture_output=True)
        after = os.times()
        processor = after.children_user + after.children_system
        processor -= before.children_user + before.children_system
        rows.append((processor, time.perf_counter() - start))
    return tuple(statistics.median(column) for column in zip(*rows[1:], strict=True))


def main() -> None:
    for words in (["--help"], ["bogus"], *([name, "--no-such-option"] for name in COMMANDS)):
        processor, wall = measure(words)
        console.print(
            f"{processor:5.2f} s of processor time, {wall:5.2f} s: fractal {' '.join(words)}"
        )
    private = subprocess.check_output([sys.executable, "-c", WORKER_MEMORY], text=True)
    console.print(f"{int(private) / 1e6:.0f} MB of private memory: training worker without model")


if __name__ == "__main__":
    main()
