"""The command line: help, errors and interruptions."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fractal_model.cli.app import COMMANDS, app, load_command, main
from fractal_model.cli.ui import ui
from fractal_model.common.console import console
from fractal_model.common.errors import FractalError
from fractal_model.config.params_source import ParamsSource
from tests.support import REPOSITORY, tiny_model
from tests.support.outside_texts import NAMES, controls

CASES = REPOSITORY / "tests/parity"


def test_parity_prints_each_error_and_passes():
    done = CliRunner().invoke(app, ["parity", str(CASES / "ar3")])
    assert done.exit_code == 0, done.output
    assert "greedy_sample_cfg3_uint8" in done.output
    assert "within tolerance" in done.output


def test_parity_exits_non_zero_when_one_is_missed(tmp_path):
    case = tmp_path / "case"
    shutil.copytree(CASES / "ar3", case)
    weights = load_file(case / "weights.safetensors")
    weights["fake_latent"] += 0.1
    save_file(weights, case / "weights.safetensors")
    done = CliRunner().invoke(app, ["parity", str(case)])
    assert isinstance(done.exception, FractalError)
    assert "eval_loss_unconditional_nats" in str(done.exception)


def test_a_user_s_mistake_is_one_line_without_a_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "fractal_model", "parity", "no such folder"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: no such folder is not a folder: give")
    assert done.stderr.count("\n") == 1


def test_a_taken_port_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    params = tmp_path / "params.yaml"
    shutil.copy(REPOSITORY / "params.yaml", params)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(
            "sys.argv", ["fractal", "ui", "--port", str(port), "--params", str(params)]
        )
        with pytest.raises(SystemExit) as stopped:
            main()
    assert stopped.value.code == 1
    assert f"port {port}" in capsys.readouterr().err


def test_an_unknown_data_set_is_named(monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("sys.argv", ["fractal", "data", "prepare", "imagenet65"])
    with pytest.raises(SystemExit):
        main()
    assert "imagenet65" in capsys.readouterr().err


def test_a_full_disk_is_an_error_on_one_line(monkeypatch, capsys, tmp_path):
    import errno

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "data"))

    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("fractal_model.data.datasets.prepare_digits", full)
    monkeypatch.setattr("sys.argv", ["fractal", "data", "prepare", "digits"])
    with pytest.raises(SystemExit) as stopped:
        main()
    error = capsys.readouterr().err
    assert stopped.value.code == 1
    assert "the disk is full" in error
    assert error.count("\n") == 1


def test_a_file_that_cannot_be_opened_is_an_error_on_one_line(monkeypatch, capsys):
    name = "x" * 5000
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("sys.argv", ["fractal", "parity", name])
    with pytest.raises(SystemExit) as stopped:
        main()
    error = capsys.readouterr().err
    assert stopped.value.code == 1
    assert error.startswith("error: xxx")
    assert "file name too long; check the path" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bogus"], "No such command 'bogus'; see `"),
        (["smaple"], "No such command 'smaple'. Did you mean 'sample'? See `"),
        (["data", "registr"], "No such command 'registr'. Did you mean 'register'? See `"),
        (["sample"], "Missing option '--model'; see `"),
        (["sample", "--model", "x", "--out", "y", "--n", "abc"], "Invalid value for '--n': "),
        (["sample", "--model", "x", "--out", ""], "Invalid value for '--out': it is empty: give"),
        (["export", "--model", "x", "--out", " "], "Invalid value for '--out': it is empty: give"),
    ],
)
def test_a_wrong_command_line_is_an_error_on_one_line(monkeypatch, capsys, words, message):
    monkeypatch.setattr("sys.argv", ["fractal", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_ctrl_c_in_the_middle_of_the_work_prints_one_line(tmp_path):
    tiny_model("mar").save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "fractal_model", "sample", "--size", "digits"]
    command += ["--model", str(tmp_path / "model"), "--iterations", "4,4", "--n", "100000"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "x.npz")],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    partial = tmp_path / ".x.npz.partial"
    deadline = time.monotonic() + 120
    while not partial.exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == "interrupted: run the same command again to continue\n"
    assert not partial.exists()


def test_make_refuses_an_old_python(tmp_path):
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    old.chmod(0o755)
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    for name in ("constraints.txt", "pyproject.toml", "setup.py"):
        (tmp_path / name).touch()
    done = subprocess.run(
        ["make", "demo", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode != 0
    assert len(errors) == 1
    assert "3.11" in errors[0]
    assert "3.9.2" in errors[0]


NOT_FOR_HELP = {"torch", "torchvision", "pandas", "mlflow", "ray", "prefect", "datasets"}
MISTYPE_EVERY_COMMAND = """
import sys
from typer.testing import CliRunner
from fractal_model.cli.app import COMMANDS, FLOWS, app
for words in ([], ["bogus"], *([x, "--no-such-option"] for x in COMMANDS if x not in FLOWS)):
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2, (words, done.output, done.exception)
print(*sys.modules)
"""


def test_help_and_mistyped_options_import_no_slow_library():
    done = subprocess.run(
        [sys.executable, "-c", MISTYPE_EVERY_COMMAND],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    assert not NOT_FOR_HELP & set(done.stdout.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_of_a_command_begins_its_help(name):
    assert " ".join((load_command(name).help or "").split()).startswith(COMMANDS[name])


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_breaks_no_line_within_a_paragraph(name):
    command = load_command(name)
    for described in (command, *getattr(command, "commands", {}).values()):
        assert all("\n" not in paragraph for paragraph in described.help.split("\n\n"))


@pytest.mark.parametrize("words", [[], ["data"], ["models"], ["services"]])
@pytest.mark.parametrize("rich", [True, False])
def test_a_group_without_a_command_prints_only_its_help(monkeypatch, capsys, words, rich):
    """With Rich, Typer prints the help itself. Without Rich, it returns the help as an error."""
    monkeypatch.setattr("typer.core.HAS_RICH", rich)
    monkeypatch.setattr("sys.argv", ["fractal", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert printed.err == ""
    assert "Commands" in printed.out


@pytest.mark.parametrize("name", [name for name in NAMES if "\udcff" not in name])
def test_a_name_in_an_error_cannot_control_the_terminal(monkeypatch, capsys, name):
    for words in (["parity", name], ["data", "verify", name], [name], ["sample", f"--{name}"]):
        monkeypatch.chdir(REPOSITORY)
        monkeypatch.setattr("sys.argv", ["fractal", *words])
        with pytest.raises(SystemExit):
            main()
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        assert controls(error) == [] and len(error) < 2200


@pytest.mark.parametrize("width", [200, 60, 40])
def test_the_plan_cuts_no_digit(monkeypatch, capsys, width):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("sys.argv", ["fractal", "plan", "mar-l", "--images", "1281167"])
    monkeypatch.setattr(console, "width", width)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    out = capsys.readouterr().out
    for number in ("405,188,608", "26,610,432", "4,059,392", "437,000,064", "27,159", "1,281,167"):
        assert number in out
    assert "…" not in out


def test_the_ui_gets_the_store_s_address_in_its_environment(monkeypatch, tmp_path):
    calls = []

    def run(command, *, env, check):
        calls.append((command, env["MLFLOW_BACKEND_STORE_URI"]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("fractal_model.cli.ui.require_free_port", lambda *_: None)
    monkeypatch.setattr("fractal_model.cli.ui.subprocess.run", run)
    address = "postgresql://me:s3cret@db/mlflow"
    monkeypatch.setattr("fractal_model.tracking.store.connect", lambda outputs: address)
    with pytest.raises(SystemExit):
        ui(params=ParamsSource(REPOSITORY / "params.yaml"))
    ((command, environment),) = calls
    assert "s3cret" not in " ".join(command)
    assert environment == address
