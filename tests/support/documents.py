"""The documents that tests compare with the code."""

import re
from pathlib import Path

import jupytext

from tests.support import REPOSITORY

DOCUMENTS = [
    file
    for pattern in ("*.md", "docs/**/*.md", "infra/*.md", "examples/**/*.md")
    for file in sorted(REPOSITORY.glob(pattern))
]
NOTEBOOKS = sorted((REPOSITORY / "docs" / "notebooks").glob("*.py"))
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
"""A block of code."""
SPAN = re.compile(r"`([^`]+)`")
"""Words in backticks, outside blocks of code."""


def read_document(file: Path) -> str:
    """The Markdown of a document or of a notebook, whose code becomes blocks."""
    if file in NOTEBOOKS:
        return str(jupytext.writes(jupytext.read(file), fmt="md"))
    return file.read_text(encoding="utf-8")
