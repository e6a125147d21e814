"""Measure the share of small faults that the tests notice: `python -m tests.benchmarks.mutations`.

It needs `pip install --constraint constraints.txt -e '.[mutation]'` (cosmic-ray). It draws 200
places of the mathematics (an operator, a number, a comparison, a condition …), makes one change at
each of them in a copy of the project, and runs the tests that reach the changed line. It prints the
changes that no test notices. It takes about half an hour on two cores.
"""

from __future__ import annotations

import ast
import difflib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated

import coverage
import pytest
import typer
from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

from fractal_model.common.console import progress_bar, say

SUBJECTS = (
    "fractal_model/model",
    "fractal_model/sampling",
    "fractal_model/metrics/distances.py",
    "fractal_model/data/order.py",
    "fractal_model/evaluation/promotion.py",
)
TESTS = (
    "tests/model",
    "tests/sampling",
    "tests/metrics",
    "tests/checkpoints",
    "tests/generation",
    "tests/evaluation",
    "tests/data/test_order.py",
    "tests/training/test_trainer.py",
)
MOST_SECONDS = 40.0
"""Longest total time of the tests of one mutant. The shortest tests are chosen first."""

Place = tuple[int, int]
"""Line and column."""


@dataclass(frozen=True)
class Mutant:
    """One change to one file."""

    path: str
    place: Place
    operator: str
    occurrence: int

    def code(self) -> tuple[str, str]:
        """Return the text of the file before and after the change."""
        code = Path(self.path).read_text()
        return code, mutate_code(code, plugins.get_operator(self.operator)(), self.occurrence)

    def __str__(self) -> str:
        before, after = (code.splitlines() for code in self.code())
        changed = [line for line in difflib.ndiff(before, after) if line[0] in "-+"]
        return "\n  ".join([f"{self.path}:{self.place[0]}", *changed])


def possible_mutants(path: Path) -> Iterator[Mutant]:
    """Yield every possible change to a file, except to annotations, which do not run."""
    code = path.read_text()
    nodes, annotations = list(ast_nodes(get_ast(code))), list(_annotations(code))
    for name in plugins.operator_names():
        if plugins.get_operator(name).arguments():
            continue
        operator = plugins.get_operator(name)()
        places = [begin for node in nodes for begin, _ in operator.mutation_positions(node)]
        for occurrence, place in enumerate(places):
            if not any(begin <= place < end for begin, end in annotations):
                yield Mutant(str(path), place, name, occurrence)


def _annotations(code: str) -> Iterator[tuple[Place, Place]]:
    for node in ast.walk(ast.parse(code)):
        for field in ("annotation", "returns"):
            if (part := getattr(node, field, None)) is not None:
                yield (part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)


def draw_mutants(count: int, seed: int) -> list[Mutant]:
    """Draw `count` places, all with the same probability, and one change at each of them."""
    by_place = defaultdict(list)
    for subject in SUBJECTS:
        for path in sorted(Path(subject).rglob("*.py")) or [Path(subject)]:
            for mutant in possible_mutants(path):
                by_place[path, mutant.place].append(mutant)
    generator = random.Random(seed)
    return [
        generator.choice(by_place[place]) for place in generator.sample(sorted(by_place), count)
    ]


class TestsOfLines:
    """A pytest plugin that records which tests reach a line of the package, and their seconds."""

    __test__ = False

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.recorder = coverage.Coverage(
            data_file=None, source=["fractal_model"], config_file=False
        )
        self.reached: dict[str, dict[int, list[str]]] = {}

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        _clear_caches()
        self.recorder.switch_context(item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration

    def record(self) -> None:
        """Run the tests once. Raises RuntimeError when one of them fails without any change."""
        with self.recorder.collect():
            if pytest.main(["-q", "-m", "not slow", *TESTS], plugins=[self]):
                raise RuntimeError("a test fails before anything is changed: correct it first")
        data = self.recorder.get_data()
        for path in data.measured_files():
            self.reached[os.path.relpath(path)] = data.contexts_by_lineno(path)

    def is_run(self, mutant: Mutant) -> bool:
        """False for a line that no test runs on this machine, such as code for a GPU."""
        return mutant.place[0] in self.reached.get(mutant.path, {})

    def select_tests(self, mutant: Mutant) -> list[str]:
        """Return the shortest tests that reach a mutant's line. For a line that runs at import,
        return tests that reach its file."""
        by_line = self.reached.get(mutant.path, {})
        tests = set(by_line.get(mutant.place[0], ())) - {""}
        tests = tests or set().union(*by_line.values()) - {""}
        selected: list[str] = []
        for test in sorted(tests, key=lambda test: (self.seconds[test], test)):
            selected.append(test)
            if sum(self.seconds[test] for test in selected) > MOST_SECONDS:
                break
        return selected


def _clear_caches() -> None:
    """Clear caches, because a test that finds a cached result does not run the cached function."""
    for name in [name for name in sys.modules if name.startswith("fractal_model.")]:
        for member in vars(sys.modules[name]).values():
            if getattr(member, "__module__", None) == name and hasattr(member, "cache_clear"):
                member.cache_clear()


def run_tests(tests: list[str], project: Path, seconds: float) -> int | None:
    """Return pytest's exit status in a copy of the project, or None if it took longer."""
    environment = os.environ | {"PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["OMP_NUM_THREADS"] = "1"  # Several processes share the cores.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    process = subprocess.Popen(
        command,
        cwd=project,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def is_noticed(mutant: Mutant, tests: list[str], project: Path) -> bool:
    """True if with the change, in a copy of the project, a test or an import fails or the tests
    take far too long."""
    file = project / mutant.path
    before, after = mutant.code()
    file.write_text(after)
    try:
        return run_tests(tests, project, 5 * MOST_SECONDS) != pytest.ExitCode.OK
    finally:
        file.write_text(before)


def main(
    count: Annotated[int, typer.Option(help="Number of changes to try.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    processes: Annotated[int, typer.Option(help="Changes that are tried at the same time.")] = 2,
) -> None:
    """Try changes and print those that no test notices."""
    lines = TestsOfLines()
    lines.record()
    copies: SimpleQueue[Path] = SimpleQueue()

    def try_mutant(mutant: Mutant) -> bool:
        tests, project = lines.select_tests(mutant), copies.get()
        try:
            return bool(tests) and is_noticed(mutant, tests, project)
        finally:
            copies.put(project)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(processes) as pool:
        command = ["git", "ls-files", "-z"]
        names = subprocess.check_output(command, text=True).split("\0")
        for number in range(processes):
            for name in filter(os.path.isfile, names):
                copy = Path(folder, str(number), name)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(name, copy)
            copies.put(Path(folder, str(number)))
        drawn = draw_mutants(count, seed)
        selected = sorted({test for mutant in drawn for test in lines.select_tests(mutant)})
        if run_tests(selected, Path(folder, "0"), 3600) != pytest.ExitCode.OK:
            raise RuntimeError("a test fails in a copy of the project, without any change")
        survivors = []
        with progress_bar("changes tried", count) as update:
            for tried, was_noticed in enumerate(pool.map(try_mutant, drawn), start=1):
                if not was_noticed:
                    survivors.append(drawn[tried - 1])
                    say(f"survives {drawn[tried - 1]}")
                update(tried)
    for place, mutants in (
        ("", drawn),
        (" in lines that run here", [*filter(lines.is_run, drawn)]),
    ):
        noticed = sum(mutant not in survivors for mutant in mutants)
        say(f"{noticed} of {len(mutants)} changes{place} noticed: {noticed / len(mutants):.1%}")


if __name__ == "__main__":
    typer.run(main)
