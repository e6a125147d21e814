"""Every command and option that a document names exists."""

import inspect
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec

import pytest
from typer.core import TyperCommand, TyperGroup

from fractal_model.cli.app import COMMANDS, load_command
from tests.support import REPOSITORY
from tests.support.documents import DOCUMENTS, FENCE, NOTEBOOKS, SPAN, read_document

Command = TyperCommand | TyperGroup
OPTION = re.compile(r"--[a-z][\w-]*")
ROOT_OPTIONS = {"X", "--help", "--install-completion"}
"""What may follow `fractal` beside a command; documents name any command X."""
READ = DOCUMENTS + NOTEBOOKS
MAKEFILE = (REPOSITORY / "Makefile").read_text()
OPTIONS_OF_OTHER_PROGRAMS = {"--all", "--watch"}
"""Prefect's, where a document speaks of them without the command."""


def named_commands(text: str) -> Iterator[list[str]]:
    """The words of each command line in code blocks and in backticks."""
    lines = [
        line for block in FENCE.findall(text) for line in block.replace("\\\n", " ").split("\n")
    ]
    lines += [" ".join(span.split()) for span in SPAN.findall(FENCE.sub("", text))]
    for line in lines:
        try:
            words = shlex.split(line.removeprefix("$ ").removeprefix("!"), comments=True)
        except ValueError:  # an output with a lone quote
            continue
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # variables before the command
            del words[0]
        if words:
            yield words


def find_command(words: list[str]) -> tuple[Command | None, list[str]]:
    """Follow `fractal data register …` to its command; the rest are its arguments."""
    if not words or words[0] not in COMMANDS:
        return None, words
    command, rest = load_command(words[0]), words[1:]
    while isinstance(command, TyperGroup) and rest and rest[0] in command.commands:
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def options_of(command: Command) -> set[str]:
    listed = {name for option in command.params for name in option.opts + option.secondary_opts}
    return listed | {"--help"}


def options_of_flow(module: str) -> set[str]:
    """The options of `python -m flows.NAME`: the parameters of its flow."""
    flows = [flow for flow in vars(import_module(module)).values() if hasattr(flow, "fn")]
    return {
        f"--{name.removesuffix('_file').replace('_', '-')}"
        for flow in flows
        for name in inspect.signature(flow.fn).parameters
    }


def mistakes(words: list[str]) -> list[str]:
    """What does not exist of a command of ours; nothing of other programs."""
    if words[:2] == ["python", "-m"]:
        return _mistakes_of_module(words[2], words[3:])
    if words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        return [t for t in targets if not re.search(rf"^{re.escape(t)}:", MAKEFILE, re.MULTILINE)]
    if words[0] != "fractal" or len(words) == 1 or words[1] in ROOT_OPTIONS:
        return []
    command, rest = find_command(words[1:])
    if command is None:
        return [words[1]]
    if isinstance(command, TyperGroup) and rest and not rest[0].startswith("-"):
        return [rest[0]]
    return [word for word in rest if OPTION.fullmatch(word) and word not in options_of(command)]


def _mistakes_of_module(module: str, rest: list[str]) -> list[str]:
    if module == "fractal_model":
        return mistakes(["fractal", *rest])
    if find_spec(module) is None:
        return [module]
    if module.startswith("flows."):
        return [w for w in rest if OPTION.fullmatch(w) and w not in options_of_flow(module)]
    return []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`fractal data register DIR --name x`", []),
        ("`fractal data forget DIR`", ["forget"]),
        ("`fractal draw`", ["draw"]),
        ("```\n$ fractal sample --modle x  # draws\n```", ["--modle"]),
        ("```\nfractal sample \\\n    --modle x\n```", ["--modle"]),
        ("```\n!fractal sample --modle x\n```", ["--modle"]),
        ("`python -m flows.train --size digits`", []),
        ("`python -m flows.train --sise digits`", ["--sise"]),
        ("`python -m flows.training`", ["flows.training"]),
        ("`make tets`", ["tets"]),
        ("`SIZE=mar-b make demo`", []),
        ("`prefect deploy --everything`", []),
    ],
)
def test_a_mistyped_command_is_recognised(text, expected):
    assert [mistake for words in named_commands(text) for mistake in mistakes(words)] == expected


@pytest.mark.parametrize("document", READ, ids=lambda d: str(d.relative_to(REPOSITORY)))
def test_commands_of_documents_exist(document):
    commands = list(named_commands(read_document(document)))
    assert [(words, wrong) for words in commands if (wrong := mistakes(words))] == []


def every_option(command: Command) -> set[str]:
    inner = command.commands.values() if isinstance(command, TyperGroup) else ()
    return options_of(command).union(*map(every_option, inner))


@pytest.mark.parametrize("document", READ, ids=lambda d: str(d.relative_to(REPOSITORY)))
def test_options_that_documents_name_alone_exist(document):
    spans = [span.split() for span in SPAN.findall(FENCE.sub("", read_document(document)))]
    named = {words[0] for words in spans if words and OPTION.fullmatch(words[0])}
    known = set().union(*(every_option(load_command(name)) for name in COMMANDS))
    assert named - known - OPTIONS_OF_OTHER_PROGRAMS <= options_of_flow("flows.train")
