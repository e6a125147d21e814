"""Readers find a file by its name: all code is in packages, and no file name is used twice."""

from __future__ import annotations

import ast
from collections import defaultdict

import pytest

from tests.support import REPOSITORY
from tests.support.source_files import PACKAGE, SOURCES, code_folders

LOOSE = {"__init__.py", "__main__.py", "py.typed"}
NAMED_AFTER_A_SUBJECT = ("fractal_model/cli", "fractal_model/config", "flows")
"""Folders whose files may have the name of the module that they serve."""


def test_the_packages_root_has_only_folders():
    assert {entry.name for entry in PACKAGE.iterdir() if entry.is_file()} <= LOOSE


@pytest.mark.parametrize("folder", code_folders(), ids=str)
def test_the_docstring_of_a_package_begins_with_one_sentence(folder):
    docstring = ast.get_docstring(ast.parse((REPOSITORY / folder / "__init__.py").read_text()))
    sentence = " ".join((docstring or "").split("\n\n")[0].split())
    assert len(sentence.split()) > 3 and sentence.endswith(".") and ". " not in sentence


def test_no_two_files_have_the_same_name():
    files_named: dict[str, list[str]] = defaultdict(list)
    for file in SOURCES:
        if not str(file.parent).startswith(NAMED_AFTER_A_SUBJECT) and file.stem != "__init__":
            files_named[file.stem].append(str(file))
    assert {name: files for name, files in files_named.items() if len(files) > 1} == {}
