"""The source files and code folders of the package and the flows, for the guards."""

from __future__ import annotations

from pathlib import Path

from tests.support import REPOSITORY

PACKAGE = REPOSITORY / "fractal_model"
SOURCES = sorted(
    file.relative_to(REPOSITORY)
    for folder in (PACKAGE, REPOSITORY / "flows")
    for file in folder.rglob("*.py")
)
"""Paths of the source files, relative to the repository's folder."""


def rooms() -> list[str]:
    """Names of the folders in fractal_model/ that hold code."""
    return sorted({folder.parts[1] for folder in code_folders() if folder.parts[1:]})


def code_folders() -> list[Path]:
    """All folders with a source file, relative to the repository's folder."""
    return sorted({file.parent for file in SOURCES})


def is_private(name: str) -> bool:
    """True for names like `_name`, but not for Python's own, like `__name__`."""
    return name.startswith("_") and not name.startswith("__")
