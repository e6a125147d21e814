"""A missing extra is named on one line, and the table of extras agrees with pyproject.toml."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest

from fractal_model.common.console import errors_on_one_line
from fractal_model.common.errors import FractalError
from fractal_model.common.extras import MODULES, explain_missing_extras
from tests.support import REPOSITORY
from tests.support.source_files import SOURCES

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
BROUGHT = {"aiohttp", "pydantic_core", "requests", "sqlalchemy", "starlette", "triton"}
"""Modules that come with s3fs, pydantic, MLflow, FastAPI and torch, and are used beside them."""


def names(requirements: list[str]) -> set[str]:
    """Names of the distributions in a list of requirements, without those of our own extras."""
    found = {re.split(r"[\[<>=!~ ]", text)[0] for text in requirements}
    return {re.sub(r"[-_.]+", "-", name).lower() for name in found} - {"fractal-model"}


DISTRIBUTIONS = {module: names(packages) for module, packages in packages_distributions().items()}
"""Names of the installed distributions that have a module, by module."""


def imported_modules() -> set[str]:
    """Top-level modules of other packages that the sources import."""
    modules = set()
    for file in SOURCES:
        for node in ast.walk(ast.parse((REPOSITORY / file).read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(str(node.module).partition(".")[0])
    return modules - set(sys.stdlib_module_names) - {"fractal_model"}


def test_every_imported_module_is_of_the_core_or_of_an_extra():
    core, listed = names(PROJECT["dependencies"]), {m for row in MODULES.values() for m in row}
    others = {module for module in imported_modules() if not DISTRIBUTIONS[module] & core}
    assert others - listed == BROUGHT


@pytest.mark.parametrize("extra", MODULES)
def test_an_extra_installs_its_modules(extra):
    installed = names(EXTRAS[extra])
    assert {module for module in MODULES[extra] if not DISTRIBUTIONS[module] & installed} == set()


def test_all_has_every_extra_of_users():
    reached, todo = set(), ["all"]
    while todo:
        extra = todo.pop()
        reached.add(extra)
        own = [text for text in EXTRAS[extra] if text.startswith("fractal-model[")]
        todo += [name for text in own for name in text[len("fractal-model[") : -1].split(",")]
    assert reached == set(EXTRAS) - {"test", "docs", "mutation"}


def test_every_extra_has_a_reason():
    lines = (REPOSITORY / "pyproject.toml").read_text().splitlines()
    for extra in EXTRAS:
        (number,) = (i for i, line in enumerate(lines) if line.startswith(f"{extra} = ["))
        assert lines[number - 1].startswith("# "), extra


@pytest.mark.parametrize(("module", "extra"), [("mlflow.entities", "track"), ("ray", "train")])
def test_a_missing_extra_is_one_line_with_the_command(capsys, module, extra):
    with pytest.raises(SystemExit) as stopped, errors_on_one_line():
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    package = module.partition(".")[0]
    assert stopped.value.code == 1
    assert capsys.readouterr().err == (
        f"error: this needs the package {package}, which is not installed: "
        f'pip install "fractal-model[{extra}]"\n'
    )


def test_the_pipeline_names_a_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    line = r'package mlflow.*"fractal-model\[track\]"'
    with pytest.raises(FractalError, match=line), explain_missing_extras():
        import mlflow  # noqa: F401


def test_another_missing_module_is_a_bug():
    with pytest.raises(ModuleNotFoundError), errors_on_one_line(), explain_missing_extras():
        raise ModuleNotFoundError("No module named 'fractal_model.x'", name="fractal_model.x")
