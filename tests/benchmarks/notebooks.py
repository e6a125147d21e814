"""Run the notebooks of docs/notebooks in this project, and write them with their outputs.

    make notebooks

The sources are Python files in jupytext's percent format; outputs/notebooks gets the notebooks. Two
of them need the demo's model (`make demo`). pytest does not collect this program.
"""

from __future__ import annotations

import os
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from fractal_model.common.console import errors_on_one_line, say
from fractal_model.common.errors import FractalError
from tests.support import REPOSITORY

SOURCES = sorted((REPOSITORY / "docs" / "notebooks").glob("*.py"))
SECONDS = 1200
"""Longest duration of one cell."""


def run_notebook(source: Path, folder: Path) -> NotebookNode:
    """Run a notebook in `folder` and return it with its outputs. CellExecutionError: a cell
    failed."""
    notebook = jupytext.read(source)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=SECONDS, resources=resources).execute()
    return notebook


def main() -> None:
    """Run all notebooks."""
    out = REPOSITORY / "outputs" / "notebooks"
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
    with errors_on_one_line():
        for source in SOURCES:
            try:
                notebook = run_notebook(source, REPOSITORY)
            except CellExecutionError as error:
                raise FractalError(
                    f"{source.name}: {str(error).strip().splitlines()[-1]}"
                ) from error
            nbformat.write(notebook, out / f"{source.stem}.ipynb")
            say(str(out / f"{source.stem}.ipynb"))


if __name__ == "__main__":
    main()
