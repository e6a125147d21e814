"""Train the recipe of docs/records.yaml with five seeds, and add a row to docs/records.md.

    make speedrun

The rules are in docs/records.md. Every run trains anew, in a folder that is removed afterwards. The
program needs the prepared data set `digits` and a commit without changes. pytest does not collect
this program.
"""

from __future__ import annotations

import platform
import re
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from scipy.stats import ttest_ind

from fractal_model.common.console import console, errors_on_one_line
from fractal_model.common.errors import FractalError
from fractal_model.common.files import atomic_file
from fractal_model.config.params import DEFAULT_FILE, load_params
from fractal_model.config.params_source import ParamsSource
from fractal_model.metrics.names import NLL
from fractal_model.model.kernels.timing import ceiling_gflops
from fractal_model.studies.comparison import estimate
from fractal_model.studies.run_study import run_study
from fractal_model.studies.study_file import BASE, Study, read_study
from fractal_model.studies.trial_table import read_rows
from fractal_model.tracking.runs import git_revision
from tests.support import REPOSITORY

TARGET = 0.75
"""Largest mean of the held-out bits per dimension of the five runs."""
RUNS, CPUS, LARGEST_P = 5, 2, 0.01
RECIPE, PAGE = REPOSITORY / "docs" / "records.yaml", REPOSITORY / "docs" / "records.md"
FIRST, RECORD = "first of this machine", "record"


@dataclass(frozen=True)
class Entry:
    """One row of the table."""

    recipe: str
    minutes: tuple[float, ...]
    bits: str
    ceiling: float
    machine: str
    commit: str
    outcome: str = ""

    def as_row(self) -> str:
        runs = " ".join(f"{minutes:.3f}" for minutes in self.minutes)
        mean = f"{statistics.fmean(self.minutes):.2f}"
        numbers = (mean, runs, self.bits, f"{self.ceiling:.0f}")
        cells = (self.recipe, *numbers, self.machine, self.commit, self.outcome, "–")
        return f"| {' | '.join(cells)} |"


def read_entries(page: str) -> list[Entry]:
    """The rows of the table in the text of docs/records.md, the oldest first."""
    lines = [line for line in page.partition("\n## Table\n")[2].splitlines() if "|" in line]
    entries = []
    for line in lines[2:]:
        recipe, _, runs, bits, ceiling, machine, commit, outcome, _ = (
            cell.strip() for cell in line.strip().strip("|").split("|")
        )
        minutes = tuple(map(float, runs.split()))
        entries.append(Entry(recipe, minutes, bits, float(ceiling), machine, commit, outcome))
    return entries


def judge(entry: Entry, bits: float, earlier: Sequence[Entry]) -> str:
    """The outcome of a new entry, whose mean is `bits`, beside the earlier rows of the table."""
    if bits > TARGET:
        return f"misses {TARGET}"
    records = [
        other
        for other in earlier
        if other.machine == entry.machine and other.outcome.startswith((FIRST, RECORD))
    ]
    if not records:
        return FIRST
    former = records[-1].minutes
    p = ttest_ind(entry.minutes, former, equal_var=False, alternative="less").pvalue
    return f"{RECORD if p < LARGEST_P else 'no record'}, p = {p:.2g}"


def require_rules(study: Study, params: Path) -> None:
    """Raise FractalError if a recipe breaks the rules that a program can check."""
    recipe = load_params(params, study.recipes[BASE]).size(study.size).training
    if study.held_out != "validation" or len(study.seeds) != RUNS or study.variants:
        raise FractalError(
            f"{RECIPE} needs held_out: validation, {RUNS} seeds and no variants: correct it"
        )
    if recipe.dataset != "digits" or recipe.uses_gpu or recipe.cpus > CPUS:
        raise FractalError(
            f"{RECIPE} trains on {recipe.dataset} with {recipe.cpus} CPUs and "
            f"{dict(recipe.resources_per_worker)} for each worker, expected digits and at most "
            f"{CPUS} CPUs: correct it"
        )


def describe_machine() -> str:
    """The name and number of this machine's processors."""
    file = Path("/proc/cpuinfo")
    text = file.read_text() if file.is_file() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    model = name.group(1).replace("|", "/") if name else platform.machine()
    return f"{model}, {torch.get_num_threads()} threads"


def measure(recipe: str, params: Path) -> tuple[Entry, float]:
    """Run the recipe. Return its entry without an outcome, and the mean bits per dimension."""
    study, machine = read_study(RECIPE), describe_machine()
    require_rules(study, params)
    commit = git_revision()
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise FractalError(f"the working folder is at {commit}: commit all changes first")
    cpu = torch.device("cpu")
    ceiling = ceiling_gflops(torch.float32, cpu)
    with tempfile.TemporaryDirectory(prefix="fractal-speedrun-") as scratch:
        source = ParamsSource(params, (f"paths.outputs={scratch}/outputs",))
        run_study(study, "speedrun", source, Path(scratch), jobs=1)
        rows = read_rows(Path(scratch) / "speedrun.csv")
    ceiling = max(ceiling, ceiling_gflops(torch.float32, cpu))
    bits = estimate([row.metrics[NLL] or 0.0 for row in rows])
    text = f"{bits.mean:.4f} ± {bits.error or 0:.4f}"
    minutes = tuple(row.minutes for row in rows)
    return Entry(recipe, minutes, text, ceiling, machine, commit[:12]), bits.mean


def main(
    recipe: Annotated[str, typer.Option(help="Name of the recipe in the table.")] = "candidate",
    params: Annotated[Path, typer.Option(help="The file with the settings.")] = DEFAULT_FILE,
) -> None:
    entry, bits = measure(recipe.replace("|", "/"), params)
    page = PAGE.read_text()
    outcome = judge(entry, bits, read_entries(page))
    row = Entry(**{**vars(entry), "outcome": outcome}).as_row()
    with atomic_file(PAGE) as partial:
        partial.write_text(f"{page.rstrip()}\n{row}\n")
    minutes = statistics.fmean(entry.minutes)
    console.print(f"{minutes:.2f} minutes to {entry.bits} bits per dimension: {outcome}")


if __name__ == "__main__":
    with errors_on_one_line():
        typer.run(main)
