"""Measure how long sampling takes by level and how it grows. Write docs/speed.json, .png and .md.

    python -m tests.benchmarks.speed [--quick] [--resume] [--draw]

Decided here: each cell is one `fractal benchmark sample … --json` in a new process, so its number
is the one that the command prints. Each process also measures the machine's ceiling. The numbers,
the plot and the tables of docs/speed.md are written after each cell, so a later error loses no
result. Cells that take minutes run once, without a warm-up run. pytest does not collect this
program.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import torch
import typer

from fractal_model.common.console import errors_on_one_line, say
from fractal_model.common.errors import FractalError
from fractal_model.common.files import atomic_file

DOCS = Path(__file__).parents[2] / "docs"
WIDTHS = {2: "256,64", 3: "256,128,64", 4: "256,192,128,64"}
BLOCKS = {2: "6,2", 3: "6,3,2", 4: "6,4,3,2"}
"""Widths and blocks by the count of numbers in `--levels`."""
BASE = "64,4,1"
TABLE_BATCH = 8
BATCHES = (1, 2, 4, 8, 16, 32, 64)
RESOLUTIONS = (64, 128, 256)
BELOW = {"ar": ("4,1",), "mar": ("4,1", "16,4,1")}
"""Levels below the resolution, by generator. Either the sequence grows with the resolution, or
another level takes the growth. An AR model takes equally many steps with another level."""
LEVELS = ("32,1", "32,8,1", "32,16,4,1")


@dataclass(frozen=True)
class Cell:
    """One measurement."""

    generator: str
    levels: str = BASE
    batch: int | str = 1
    """Batch size, or a word that stands for it where one command is shown for many cells."""
    compiled: bool = True
    repeats: int = 1
    warm_up: bool = True
    reference: bool = False
    slow: bool = False
    """True if `--quick` leaves the cell out."""

    @property
    def name(self) -> str:
        compiled = "" if self.compiled else ", not compiled"
        return f"{self.generator}, {self.levels}, batch {self.batch}{compiled}"

    @property
    def arguments(self) -> list[str]:
        count = self.levels.count(",") + 1
        options = {
            "levels": self.levels,
            "widths": WIDTHS[count],
            "blocks": BLOCKS[count],
            "heads": ",".join("4" * count),
            "generators": ",".join([self.generator] * (count - 1)),
            "batch": str(self.batch),
            "repeats": str(self.repeats),
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        # MAR models are not compiled: most of their cells run once, so compiling would be counted.
        words.append("--compile" if self.compiled and self.generator == "ar" else "--no-compile")
        if not self.warm_up:
            words.append("--no-warm-up")
        if not self.reference:
            words.append("--no-reference")
        if self.batch != TABLE_BATCH:
            words.append("--no-by-level")
        return words

    @property
    def command(self) -> str:
        return " ".join(["fractal benchmark sample", *self.arguments])


TABLES = (
    Cell("ar", batch=TABLE_BATCH, repeats=3, reference=True),
    Cell("ar", batch=TABLE_BATCH, compiled=False, warm_up=False),
    Cell("mar", batch=TABLE_BATCH, reference=True),
)


def repeats(generator: str, *, slow: bool) -> int:
    """Return 3 for a compiled model. Its second run compiles again; the median of 3 ignores it."""
    return 3 if generator == "ar" and not slow else 1


def batch_cells(generator: str) -> list[Cell]:
    """Return the cells of all batch sizes. For large ones, MAR models need no warm-up run."""
    masked = generator == "mar"
    return [
        Cell(
            generator,
            batch=batch,
            repeats=repeats(generator, slow=batch > 16),
            warm_up=not (masked and batch > 8),
            slow=batch > 16,
        )
        for batch in BATCHES
        if batch != TABLE_BATCH
    ]


def resolution_cells(generator: str) -> list[Cell]:
    return [
        Cell(
            generator,
            f"{side},{below}",
            repeats=repeats(generator, slow=side > 64),
            warm_up=generator == "ar" or side < 128,
            slow=side > 128,
        )
        for side in RESOLUTIONS
        for below in BELOW[generator]
        if f"{side},{below}" != BASE
    ]


def level_cells(generator: str) -> list[Cell]:
    return [Cell(generator, levels, repeats=repeats(generator, slow=False)) for levels in LEVELS]


def all_cells() -> list[Cell]:
    """Return all cells, the slow ones last."""
    cells = list(TABLES)
    for group in (level_cells, batch_cells, resolution_cells):
        for generator in ("ar", "mar"):
            cells.extend(group(generator))
    return sorted(cells, key=lambda cell: cell.slow)


def measure_cell(cell: Cell) -> dict:
    """FractalError: the command ended with an error."""
    command = [sys.executable, "-m", "fractal_model", "benchmark", "sample", *cell.arguments]
    process = subprocess.run([*command, "--json"], capture_output=True, text=True)
    if process.returncode:
        last = (process.stderr.strip().splitlines() or [""])[-1]
        raise FractalError(f"`{cell.command}` ended with {process.returncode}: {last}")
    return json.loads(process.stdout)


def describe_machine() -> dict[str, object]:
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "torch": version("torch"),
        "fractal-model": version("fractal-model"),
    }


def cpu_name() -> str:
    """Return the CPU's name from Linux, or else the machine's architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def write(results: dict) -> None:
    """Write the numbers, the plot and the page."""
    from tests.benchmarks.speed_page import draw_plot, fill_page

    with atomic_file(DOCS / "speed.json") as partial:
        partial.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    draw_plot(results["cells"], DOCS / "speed.png")
    fill_page(results, DOCS / "speed.md")


def main(
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out the cells that take minutes.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the cells that docs/speed.json has.")
    ] = False,
    draw: Annotated[
        bool,
        typer.Option("--draw", help="Only write plot and tables from docs/speed.json."),
    ] = False,
) -> None:
    results = {"machine": describe_machine(), "cells": {}}
    before = DOCS / "speed.json"
    if draw and not before.exists():
        raise FractalError(f"{before} does not exist: measure first, without --draw")
    if (resume or draw) and before.exists():
        results = json.loads(before.read_text())
    failed = []
    for cell in [] if draw else all_cells():
        if cell.name in results["cells"] or (quick and cell.slow):
            continue
        start = time.perf_counter()
        try:
            measurement = measure_cell(cell)
        except FractalError as error:
            failed.append(str(error))
            continue
        took = time.perf_counter() - start
        say(f"{cell.name}: {measurement['seconds_per_image']:.3g} s an image ({took:.0f} s in all)")
        results["cells"][cell.name] = {
            "command": cell.command,
            "seconds_in_all": took,
            "measured": measurement,
        }
        write(results)
    if draw:
        write(results)
    if failed:
        raise FractalError(f"{len(failed)} cells failed: {'; '.join(failed)}")


if __name__ == "__main__":
    with errors_on_one_line():
        typer.run(main)
