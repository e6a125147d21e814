"""The source files of the package and of the flows, as the guards read them."""

from __future__ import annotations

from pathlib import Path

from tests.support import REPOSITORY

PACKAGE = REPOSITORY / "fractal_model"
SOURCES = sorted(
    file.relative_to(REPOSITORY)
    for folder in (PACKAGE, REPOSITORY / "flows")
    for file in folder.rglob("*.py")
)
"""Paths from the repository's folder."""


def rooms() -> list[str]:
    """Names of the folders in fractal_model/ that hold code."""
    return sorted({folder.parts[1] for folder in code_folders() if folder.parts[1:]})


def code_folders() -> list[Path]:
    """Every folder with a source file, from the repository's folder."""
    return sorted({file.parent for file in SOURCES})


def is_private(name: str) -> bool:
    """True for `_name`; `__name__` belongs to Python."""
    return name.startswith("_") and not name.startswith("__")
