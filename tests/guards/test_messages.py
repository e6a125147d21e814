"""Only the command line names its options in messages; other code names the setting."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from fractal_model.common.console import errors_on_one_line
from fractal_model.common.errors import FractalError
from tests.support import REPOSITORY
from tests.support.source_files import SOURCES

MAY_NAME_FLAGS = (
    "fractal_model/cli/",
    "flows/",
    "fractal_model/common/console.py",  # it turns a setting's name into the flag
    "fractal_model/services/configuration.py",  # command lines of the servers
)
FLAG = re.compile(r"(?<![\w-])--[a-z]")
ARGUMENT = re.compile(r"--[\w-]+(=\S*)?")
"""A string that is only an argument of another program, not a message."""
OTHER_PROGRAM = re.compile(r"\b(dvc|git|pip) [^`']*")


def texts(source: str) -> Iterator[str]:
    """Yield all strings of a file except docstrings; `{…}` stands for values of f-strings."""
    nodes = list(ast.walk(ast.parse(source)))
    joined = [node for node in nodes if isinstance(node, ast.JoinedStr)]
    skipped = {node.value for node in nodes if isinstance(node, ast.Expr)}
    skipped |= {part for node in joined for part in node.values}
    for node in joined:
        parts = [part.value if isinstance(part, ast.Constant) else "{…}" for part in node.values]
        yield "".join(parts)
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skipped:
            yield node.value


def flags(source: str) -> list[str]:
    """The strings of a file that contain an option of our command line."""
    return [
        text
        for text in texts(source)
        if FLAG.search(OTHER_PROGRAM.sub("", text)) and not ARGUMENT.fullmatch(text)
    ]


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("raise FractalError('choose another --out')", 1),
        ("say(f'{folder} is taken: choose '\n    f'another --out')", 1),
        ("f'--out is {out}'", 1),
        ("advice = {'folder': 'give --holdout'}", 1),
        ("raise FractalError('choose another folder')", 0),
        ("run(['ray', 'start', '--head', '--port=0'])", 0),
        ("raise FractalError('run `dvc repro --force`')", 0),
        ("raise FractalError('run `dvc repro --force`, or give --out')", 1),
        ("'''Of --out.'''", 0),
    ],
)
def test_a_flag_in_a_message_is_found(source, count):
    assert len(flags(source)) == count


def test_messages_name_no_flag_outside_the_command_line():
    others = [file for file in SOURCES if not str(file).startswith(MAY_NAME_FLAGS)]
    by_file = {str(file): flags((REPOSITORY / file).read_text()) for file in others}
    assert {file: strings for file, strings in by_file.items() if strings} == {}


def test_the_command_line_shows_the_flag_of_the_setting(capsys):
    with pytest.raises(SystemExit), errors_on_one_line():
        raise FractalError("a batch of 3: give an even one", setting="batch_size")
    assert capsys.readouterr().err == "error: a batch of 3: give an even one (--batch-size)\n"
