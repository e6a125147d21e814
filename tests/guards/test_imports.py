"""Imports follow the contracts of pyproject.toml, and no file imports another's private names."""

from __future__ import annotations

import ast
import tomllib

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

from tests.support import REPOSITORY
from tests.support.source_files import SOURCES, is_private, rooms

PYPROJECT = REPOSITORY / "pyproject.toml"
OURS = ("fractal_model", "flows")


def test_imports_follow_the_contracts():
    status = lint_imports(config_filename=str(PYPROJECT), no_cache=True, no_logo=True)
    assert status == EXIT_STATUS_SUCCESS, "the broken contracts are printed above"


def test_every_package_has_a_place_in_the_layers():
    contracts = tomllib.loads(PYPROJECT.read_text())["tool"]["importlinter"]["contracts"]
    rows = next(c["layers"] for c in contracts if "containers" not in c and c["type"] == "layers")
    layered = [room for row in rows for room in row.split(" | ")]
    assert sorted(layered) == sorted(["flows", *(f"fractal_model.{room}" for room in rooms())])


def private_imports(text: str) -> list[str]:
    """Private names that the source `text` imports from our modules, or reads from them."""
    tree = ast.parse(text)
    ours = [
        alias
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith(OURS))
        for alias in node.names
    ]
    modules = {alias.asname or alias.name for alias in ours}
    read = [
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and is_private(node.attr)
        if isinstance(node.value, ast.Name) and node.value.id in modules
    ]
    return [*(alias.name for alias in ours if is_private(alias.name)), *read]


@pytest.mark.parametrize(
    "text",
    [
        "from fractal_model.model.attention import _scores",
        "def later():\n    from flows.train import _scores",
        "from .train import _scores",
        "from fractal_model.model import attention\nattention._scores()",
    ],
)
def test_a_private_import_is_found(text):
    assert private_imports(text) == ["_scores"]


def test_private_names_stay_in_their_file():
    private = {str(file): private_imports((REPOSITORY / file).read_text()) for file in SOURCES}
    assert {file: names for file, names in private.items() if names} == {}
