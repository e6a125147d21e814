"""--quiet, --json, --debug and --set have the same meaning in every command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from fractal_model.cli.app import COMMANDS, FLOWS, app, load_command, main
from fractal_model.common.console import progress_bar, say, show
from fractal_model.common.errors import FractalError
from fractal_model.common.shared_options import with_shared_options
from fractal_model.common.tables import FittedTable
from tests.support import REPOSITORY


def measure(fail: bool = False) -> dict[str, object]:
    """Measure."""
    say("a message")
    print("a library's output")
    with progress_bar("work", 2) as update:
        update(2)
    table = FittedTable("a table", ["name", "value"])
    table.add_row("x", "1.5")
    show(table, "a result")
    if fail:
        raise FractalError("it is wrong: do better")
    return {"value": 1.5, "file": Path("a/b"), "missing": float("nan")}


@pytest.fixture
def run():
    single = typer.Typer()
    single.command()(with_shared_options(measure))
    return lambda *words: CliRunner().invoke(single, words)


def test_without_options_everything_is_printed(run):
    output = run().stdout
    assert all(text in output for text in ("a message", "work: 2 of 2", "a table", "a result"))
    assert "{" not in output


def test_quiet_leaves_the_results(run):
    done = run("--quiet")
    assert "a message" not in done.output and "work" not in done.output
    assert "a table" in done.stdout and "a result" in done.stdout
    assert "a message" in run().output, "the next command speaks again"


def test_json_leaves_stdout_to_one_object(run):
    done = run("--json")
    assert json.loads(done.stdout) == {"value": 1.5, "file": "a/b", "missing": None}
    assert "a message" in done.stderr and "a library's output" in done.stderr
    assert "a table" not in done.output and "a result" not in done.output
    assert "a message" not in run("--json", "--quiet").output


def test_debug_shows_the_traceback_of_a_users_mistake(run):
    done = run("--fail", "--debug")
    assert isinstance(done.exception, FractalError)
    assert "in measure" in done.stderr and "FractalError: it is wrong: do better" in done.stderr
    assert run("--fail").stderr == ""


def _leaves(command, name):
    inner = getattr(command, "commands", None)
    if inner is None:
        return [(name, {option for parameter in command.params for option in parameter.opts})]
    return [leaf for key, each in inner.items() for leaf in _leaves(each, f"{name} {key}")]


WITHOUT_RESULT = {
    "data reference",
    "data register-reference",
    "data report",
    "init",
    "playground",
    "ui",
}


def test_every_command_has_the_shared_options():
    leaves = [leaf for x in COMMANDS if x not in FLOWS for leaf in _leaves(load_command(x), x)]
    assert len(leaves) > 20
    for name, options in leaves:
        assert {"--quiet", "--debug"} <= options, name
        assert ("--set" in options) == ("--params" in options), name
        assert ("--json" in options) == (name not in WITHOUT_RESULT), name


def _fractal(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fractal_model", *words]
    variables = {**os.environ, **environment}
    return subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True)


def test_a_command_takes_a_setting_and_prints_plain_yaml_to_a_pipe():
    words = ("params", "show", "training.digits.epochs", "--set", "training.digits.epochs=5")
    for environment in ({}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}):
        done = _fractal(*words, **environment)
        assert yaml.safe_load(done.stdout) == {"training": {"digits": {"epochs": 5}}}
        assert done.stdout.rstrip().endswith("# --set") and "\x1b" not in done.stdout


def test_a_wrong_setting_is_one_line_that_names_the_option(monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    words = ["plan", "digits", "--set", "training.digits.epoch=5"]
    monkeypatch.setattr("sys.argv", ["fractal", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and error.count("\n") == 1
    assert error.endswith("did you mean 'epochs'? (--set)\n")


def test_the_settings_with_json_have_full_names():
    words = ["params", "show", "training.digits.seed", "--json"]
    done = CliRunner().invoke(app, [*words, "--params", str(REPOSITORY / "params.yaml")])
    ((name, setting),) = json.loads(done.stdout).items()
    assert name == "training.digits.seed"
    assert setting["value"] == 0 and setting["from"].startswith("params.yaml:")


@pytest.mark.parametrize(
    ("line", "word", "expected"),
    [("fractal sam", 1, ["sample"]), ("fractal data verif", 2, ["verify"])],
)
def test_the_shell_completes_commands(line, word, expected):
    code = "import sys; sys.argv = ['fractal']; from fractal_model.cli.app import main; main()"
    variables = {"COMP_WORDS": line, "COMP_CWORD": str(word), "_FRACTAL_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == expected
