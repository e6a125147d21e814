"""Make the pictures and the terminal output that README and docs show again, with the demo's model.

    make pictures

It needs the demo's results (`make demo`) and Chromium. It runs the commands of the documents that
name the demo's model, in an empty folder, and writes their output and their pictures into the
documents; draws the playground; and lets the tests of MLflow's pages save their pictures. The
pictures of emojis are made again if openmoji64 is prepared and `emoji-64` is registered, and are
left as they are otherwise. The plots of measured speed belong to `make benchmark-page`. pytest does
not collect this program.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from fractal_model.common.console import errors_on_one_line, say
from fractal_model.common.errors import FractalError
from fractal_model.common.files import atomic_file
from fractal_model.config.params_source import ParamsSource
from fractal_model.tracking import store
from fractal_model.tracking.registry_view import served_models
from tests.support import REPOSITORY
from tests.support.chromium import BINARY, browser_page
from tests.support.documents import DOCUMENTS, FENCE
from tests.support.playground import serve_playground

DOCS = REPOSITORY / "docs"
CHAMPION, EMOJI = "models:/fractal-digits@champion", "models:/fractal-emoji-64@"
LINKED = re.compile(r"!\[[^\]]*\]\(([^)]+)\)")
"""A picture in a document."""
TABLE = re.compile(r"fractal-digits version \d+ *\n┏.*?┘\n", re.DOTALL)
"""The table of metrics in the README."""
PROGRESS = re.compile(r": [\d,]+ of [\d,]+, ")
"""A line that says how far a command is."""
MODEL_FREE = ("cp ", "fractal plan ")
"""The beginnings of commands that need no model."""
METRICS = ("nll_bits_per_dim", "nll_bits_per_dim_stderr", "fid", "fid_stderr", "class_agreement")
"""Metrics that the README shows."""
GROWTH = 2
"""Number of pictures that the playground has shown at least when it is saved, half drawn."""
PAGES = ("tests/tracking/test_browser.py", "tests/flows/test_pages.py")


def commands_of(block: str) -> list[str]:
    """The commands of a block of code that shows a terminal."""
    return [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]


def is_of_demo(block: str) -> bool:
    """True if a block shows commands that need nothing but the demo's model."""
    commands = commands_of(block)
    others = [c for c in commands if CHAMPION not in c and not c.startswith(MODEL_FREE)]
    return bool(commands) and not others and "fractal evaluate" not in block


def show_output(block: str, run: Callable[[str], str]) -> str:
    """Return a block with the output of its commands, which `run` runs, in place of the old one."""
    fence, *shown = block.splitlines()
    lines = [fence]
    for command in commands_of(block):
        output = [line for line in run(command).splitlines() if not PROGRESS.search(line)]
        if command.endswith("# excerpt"):
            output = excerpt_lines(shown, output)
        lines += [f"$ {command}", *output]
    return "\n".join([*lines, "```"])


def excerpt_lines(shown: Sequence[str], output: Sequence[str]) -> list[str]:
    """Return the rows of tables in `output` that an older excerpt, `shown`, has, found in their
    order by their first cells. A line of dots stays. FractalError: a row is no longer there."""
    rows, rest = [], iter(output)
    for line in shown:
        if line.startswith("│"):
            label = line[: line.index("│", 1)]  # with its spaces, which differ between tables
            row = next((row for row in rest if row.startswith(label)), None)
            if row is None:
                name = label.strip("│ ")
                raise FractalError(f"the output has no row {name!r}: change the excerpt")
            rows.append(row)
        elif line == "…":
            rows.append(line)
    return rows


def run_in(folder: Path) -> Callable[[str], str]:
    """Return the function that runs a command in `folder` with the project's settings and returns
    what it prints to standard output. FractalError: it failed."""
    environment = os.environ | {
        "FRACTAL_PARAMS": str(REPOSITORY / "params.yaml"),
        "PREFECT_LOGGING_LEVEL": "ERROR",
    }

    def run(command: str) -> str:
        words = shlex.split(command, comments=True)
        program = [sys.executable, "-m", "fractal_model", *words[1:]]
        done = subprocess.run(
            program if words[0] == "fractal" else words,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise FractalError(f"{command} failed: {done.stderr.strip()}")
        return done.stdout

    return run


def remake_document(document: Path) -> None:
    """Run the commands of a document that need the demo's model; write their output into it and
    their pictures beside it."""
    text = document.read_text()
    with tempfile.TemporaryDirectory() as folder:
        run = run_in(Path(folder))
        for block in FENCE.findall(text):
            if is_of_demo(block):
                text = text.replace(block, show_output(block, run))
        for name in LINKED.findall(text):
            if (made := Path(folder) / name).is_file():
                shutil.copy(made, document.parent / name)
                say(f"{document.parent / name}")
    with atomic_file(document) as partial:
        partial.write_text(text)


def remake_readme() -> None:
    """Show the metrics of the demo in the README, and its samples."""
    model = REPOSITORY / "outputs" / "digits" / "model.json"
    words = [sys.executable, "-m", "flows.evaluate", "--size", "digits", "--model", str(model)]
    printed = run_in(REPOSITORY)(shlex.join(words))
    found = TABLE.search(printed)
    if found is None:
        raise FractalError(f"the demo printed no table of metrics: {printed[-500:]}")
    readme = REPOSITORY / "README.md"
    with atomic_file(readme) as partial:
        partial.write_text(TABLE.sub(shorten_table(found[0]), readme.read_text()))
    shutil.copy(REPOSITORY / "outputs" / "digits" / "samples.png", DOCS / "samples.png")


def shorten_table(table: str) -> str:
    """Return a table of metrics with its most important rows, and a row of dots for the others."""
    *rows, end = (row.rstrip() for row in table.splitlines())
    kept = [row for row in rows if "│" not in row or row.split()[1] in METRICS]
    name, value = (len(cell) for cell in kept[-1].split("│")[1:-1])
    return "\n".join([*kept, f"│{' …'.ljust(name)}│{' ' * value}│", end]) + "\n"


def draw_playground(file: Path) -> None:
    """Save a picture of the playground while the demo's model draws."""
    button = "[...document.querySelectorAll('button.primary')].find(b => b.innerText === 'Draw')"
    images = "[...document.querySelectorAll('input[type=number]')][0]"
    with serve_playground(REPOSITORY, CHAMPION) as address, browser_page() as page:
        page.open(address, size=(1300, 900))
        page.wait(f"Boolean({button})")
        page.wait(f"({images}.select(), true)")
        page.type(images, "9")
        page.press("Tab")
        page.click(button)
        shown = "document.querySelector('#drawn img')?.src"
        page.wait(f"(window.pictures ??= new Set()).add({shown}).size > {GROWTH}")
        page.save(file)
    say(str(file))


def remake_emojis() -> None:
    """Draw the pictures of emojis, if the data set and the model are here."""
    report = REPOSITORY / "data" / "openmoji64-report" / "contact-sheet.png"
    models = [source for source in served_models() if source.startswith(EMOJI)]
    if report.is_file():
        shutil.copy(report, DOCS / "openmoji64.png")
    if not models:
        return say("emoji-64 is not registered: docs/emoji-64.png stays as it is")
    with tempfile.TemporaryDirectory() as folder:
        options = f"--model {models[0]} --classes flags,food,smileys --n 8 --out emoji.png"
        run_in(Path(folder))(f"fractal sample {options}")
        shutil.copy(Path(folder) / "emoji.png", DOCS / "emoji-64.png")


def main(
    mlflow: Annotated[
        bool, typer.Option(help="Also make the pictures of MLflow's pages, in 5 minutes.")
    ] = True,
) -> None:
    """Make all pictures and outputs of the documents again."""
    with errors_on_one_line():
        if BINARY is None:
            raise FractalError("Chromium is not installed: run `apt-get install chromium`")
        store.connect(ParamsSource(REPOSITORY / "params.yaml").load().paths.outputs)
        if CHAMPION not in served_models():
            raise FractalError("the demo's model is not registered: run `make demo` first")
        remake_readme()
        for document in DOCUMENTS:
            if any(map(is_of_demo, FENCE.findall(document.read_text()))):
                remake_document(document)
        draw_playground(DOCS / "playground.png")
        remake_emojis()
        if mlflow:
            environment = os.environ | {"FRACTAL_SCREENSHOTS": "docs"}
            pytest = [sys.executable, "-m", "pytest", "-q", "-m", "pages", *PAGES]
            subprocess.run(pytest, cwd=REPOSITORY, env=environment, check=True)


if __name__ == "__main__":
    typer.run(main)
