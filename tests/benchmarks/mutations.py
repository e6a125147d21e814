"""Which share of small faults the tests notice: `python -m tests.benchmarks.mutations`.

Needs `pip install --constraint constraints.txt -e '.[mutation]'` (cosmic-ray). Draws 200 places of
the mathematics (an operator, a number, a comparison, a condition …), makes one change at each of
them in a copy of the project, and runs the tests that reach the changed line. Prints the changes
that no test noticed. About half an hour on two cores.
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
"""The time that the tests of one mutant may take together; the shortest tests come first."""

Place = tuple[int, int]
"""Line and column."""


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    path: str
    place: Place
    operator: str
    occurrence: int

    def code(self) -> tuple[str, str]:
        """The file before and after the change."""
        code = Path(self.path).read_text()
        return code, mutate_code(code, plugins.get_operator(self.operator)(), self.occurrence)

    def __str__(self) -> str:
        before, after = (code.splitlines() for code in self.code())
        changed = [line for line in difflib.ndiff(before, after) if line[0] in "-+"]
        return "\n  ".join([f"{self.path}:{self.place[0]}", *changed])


def mutants(path: Path) -> Iterator[Mutant]:
    """Every change that can be made to a file, but for those of annotations: these change nothing
    that runs."""
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


def draw(count: int, seed: int) -> list[Mutant]:
    """One change at each of `count` places; each place is as likely as any other."""
    at = defaultdict(list)
    for subject in SUBJECTS:
        for path in sorted(Path(subject).rglob("*.py")) or [Path(subject)]:
            for mutant in mutants(path):
                at[path, mutant.place].append(mutant)
    chance = random.Random(seed)
    return [chance.choice(at[place]) for place in chance.sample(sorted(at), count)]


class TestsOfLines:
    """A plugin of pytest: which tests reach which lines of the package, and how long they take."""

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
        """Run the tests once. RuntimeError: one of them fails without any change."""
        with self.recorder.collect():
            if pytest.main(["-q", "-m", "not slow", *TESTS], plugins=[self]):
                raise RuntimeError("a test fails before anything is changed: mend it first")
        data = self.recorder.get_data()
        for path in data.measured_files():
            self.reached[os.path.relpath(path)] = data.contexts_by_lineno(path)

    def runs(self, mutant: Mutant) -> bool:
        """False for a line that nothing runs on this machine, as those for a GPU."""
        return mutant.place[0] in self.reached.get(mutant.path, {})

    def of(self, mutant: Mutant) -> list[str]:
        """The shortest tests that reach a mutant's line, or its file where the line runs when the
        file is imported."""
        by_line = self.reached.get(mutant.path, {})
        tests = set(by_line.get(mutant.place[0], ())) - {""}
        tests = tests or set().union(*by_line.values()) - {""}
        chosen: list[str] = []
        for test in sorted(tests, key=lambda test: (self.seconds[test], test)):
            chosen.append(test)
            if sum(self.seconds[test] for test in chosen) > MOST_SECONDS:
                break
        return chosen


def _clear_caches() -> None:
    """A test that finds another's results in a cache would not reach the lines that make them."""
    for name in [name for name in sys.modules if name.startswith("fractal_model.")]:
        for each in vars(sys.modules[name]).values():
            if getattr(each, "__module__", None) == name and hasattr(each, "cache_clear"):
                each.cache_clear()


def run_tests(tests: list[str], project: Path, seconds: float) -> int | None:
    """pytest's exit status for these tests in a copy of the project; None where it took longer."""
    environment = os.environ | {"PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["OMP_NUM_THREADS"] = "1"  # threads of several processes wait for each other
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
    """Run the tests on a copy of the project that has the change: does one of them fail, or the
    import, or do they take far too long?"""
    file = project / mutant.path
    before, after = mutant.code()
    file.write_text(after)
    try:
        return run_tests(tests, project, 5 * MOST_SECONDS) != pytest.ExitCode.OK
    finally:
        file.write_text(before)


def main(
    count: Annotated[int, typer.Option(help="Changes to try.")] = 200,
    seed: Annotated[int, typer.Option(help="Draws other changes.")] = 0,
    processes: Annotated[int, typer.Option(help="Changes tried at a time.")] = 2,
) -> None:
    """Try changes, and print those that no test noticed."""
    lines = TestsOfLines()
    lines.record()
    copies: SimpleQueue[Path] = SimpleQueue()

    def notice(mutant: Mutant) -> bool:
        tests, project = lines.of(mutant), copies.get()
        try:
            return bool(tests) and is_noticed(mutant, tests, project)
        finally:
            copies.put(project)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(processes) as pool:
        listed = ["git", "ls-files", "-z"]
        names = subprocess.check_output(listed, text=True).split("\0")
        for number in range(processes):
            for name in filter(os.path.isfile, names):
                copy = Path(folder, str(number), name)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(name, copy)
            copies.put(Path(folder, str(number)))
        drawn = draw(count, seed)
        every = sorted({test for mutant in drawn for test in lines.of(mutant)})
        if run_tests(every, Path(folder, "0"), 3600) != pytest.ExitCode.OK:
            raise RuntimeError("a test fails in a copy of the project, without any change")
        survivors = []
        with progress_bar("changes tried", count) as update:
            for tried, noticed in enumerate(pool.map(notice, drawn), start=1):
                if not noticed:
                    survivors.append(drawn[tried - 1])
                    say(f"survives {drawn[tried - 1]}")
                update(tried)
    for where, some in (("", drawn), (" in lines that run here", [*filter(lines.runs, drawn)])):
        noticed = sum(mutant not in survivors for mutant in some)
        say(f"{noticed} of {len(some)} changes{where} noticed: {noticed / len(some):.1%}")


if __name__ == "__main__":
    typer.run(main)
