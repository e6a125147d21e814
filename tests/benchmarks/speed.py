"""How long sampling takes, by level, and how that grows: makes docs/speed.json and what it shows.

    python -m tests.benchmarks.speed [--quick] [--resume] [--draw]

Decided here: each cell is one `fractal benchmark sample … --json` in a process of its own, so that
its number is what its command prints; the machine's ceiling is measured within each. After each
cell the numbers, the plot and the tables of docs/speed.md are written, so that what was measured
is there whatever happens later. Cells that take minutes run once, without a run to warm up. Not
collected by pytest.
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
"""By how many numbers `--levels` has."""
BASE = "64,4,1"
TABLE_BATCH = 8
BATCHES = (1, 2, 4, 8, 16, 32, 64)
RESOLUTIONS = (64, 128, 256)
BELOW = {"ar": ("4,1",), "mar": ("4,1", "16,4,1")}
"""What stands below the resolution: the sequence grows with it, or a level takes the growth. An AR
model takes as many steps with another level as without."""
LEVELS = ("32,1", "32,8,1", "32,16,4,1")


@dataclass(frozen=True)
class Cell:
    """One measurement."""

    generator: str
    levels: str = BASE
    batch: int | str = 1
    """Or the word that stands for it where a command is shown for many."""
    compiled: bool = True
    repeats: int = 1
    warm_up: bool = True
    reference: bool = False
    slow: bool = False
    """Left out by `--quick`."""

    @property
    def name(self) -> str:
        compiled = "" if self.compiled else ", not compiled"
        return f"{self.generator}, {self.levels}, batch {self.batch}{compiled}"

    @property
    def arguments(self) -> list[str]:
        count = self.levels.count(",") + 1
        below = {
            "levels": self.levels,
            "widths": WIDTHS[count],
            "blocks": BLOCKS[count],
            "heads": ",".join("4" * count),
            "generators": ",".join([self.generator] * (count - 1)),
            "batch": str(self.batch),
            "repeats": str(self.repeats),
        }
        found = [part for name, value in below.items() for part in (f"--{name}", value)]
        # A MAR model is not compiled here: most of its cells run once, which would count it.
        found.append("--compile" if self.compiled and self.generator == "ar" else "--no-compile")
        if not self.warm_up:
            found.append("--no-warm-up")
        if not self.reference:
            found.append("--no-reference")
        if self.batch != TABLE_BATCH:
            found.append("--no-by-level")
        return found

    @property
    def command(self) -> str:
        return " ".join(["fractal benchmark sample", *self.arguments])


TABLES = (
    Cell("ar", batch=TABLE_BATCH, repeats=3, reference=True),
    Cell("ar", batch=TABLE_BATCH, compiled=False, warm_up=False),
    Cell("mar", batch=TABLE_BATCH, reference=True),
)


def repeats(generator: str, *, slow: bool) -> int:
    """What is compiled is compiled again in the second run, which a median of three leaves out."""
    return 3 if generator == "ar" and not slow else 1


def by_batch(generator: str) -> list[Cell]:
    """A MAR model that is not compiled has, from some batch on, nothing to warm up for."""
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


def by_resolution(generator: str) -> list[Cell]:
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


def by_levels(generator: str) -> list[Cell]:
    return [Cell(generator, levels, repeats=repeats(generator, slow=False)) for levels in LEVELS]


def all_cells() -> list[Cell]:
    """What the tables are of, and then what takes longer."""
    found = list(TABLES)
    for group in (by_levels, by_batch, by_resolution):
        for generator in ("ar", "mar"):
            found.extend(group(generator))
    return sorted(found, key=lambda cell: cell.slow)


def measured(cell: Cell) -> dict:
    """FractalError: the command ended with an error."""
    command = [sys.executable, "-m", "fractal_model", "benchmark", "sample", *cell.arguments]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        raise FractalError(f"`{cell.command}` ended with {done.returncode}: {last}")
    return json.loads(done.stdout)


def machine() -> dict[str, object]:
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
    """As Linux has it, else the kind of the machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def write(results: dict) -> None:
    """The numbers, and what shows them."""
    from tests.benchmarks.speed_page import draw, fill

    with atomic_file(DOCS / "speed.json") as partial:
        partial.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    draw(results["cells"], DOCS / "speed.png")
    fill(results, DOCS / "speed.md")


def main(
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out the cells that take minutes.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the cells that docs/speed.json has.")
    ] = False,
    draw: Annotated[
        bool, typer.Option("--draw", help="Measure nothing: plot and tables of docs/speed.json.")
    ] = False,
) -> None:
    results = {"machine": machine(), "cells": {}}
    before = DOCS / "speed.json"
    if draw and not before.exists():
        raise FractalError(f"{before} is not there: measure first, without --draw")
    if (resume or draw) and before.exists():
        results = json.loads(before.read_text())
    failed = []
    for cell in [] if draw else all_cells():
        if cell.name in results["cells"] or (quick and cell.slow):
            continue
        start = time.perf_counter()
        try:
            found = measured(cell)
        except FractalError as error:
            failed.append(str(error))
            continue
        took = time.perf_counter() - start
        say(f"{cell.name}: {found['seconds_per_image']:.3g} s an image ({took:.0f} s in all)")
        results["cells"][cell.name] = {
            "command": cell.command,
            "seconds_in_all": took,
            "measured": found,
        }
        write(results)
    if draw:
        write(results)
    if failed:
        raise FractalError(f"{len(failed)} cells failed: {'; '.join(failed)}")


if __name__ == "__main__":
    with errors_on_one_line():
        typer.run(main)
