"""The command line as a person meets it."""

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


def test_module_and_error_line():
    done = subprocess.run(
        [sys.executable, "-m", "fractal_model", "parity", "no such folder"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: no such folder is not a folder: give")
    assert done.stderr.count("\n") == 1


def test_port_in_use(tmp_path, monkeypatch, capsys):
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


def test_unknown_data_set(monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("sys.argv", ["fractal", "data", "prepare", "imagenet65"])
    with pytest.raises(SystemExit):
        main()
    assert "imagenet65" in capsys.readouterr().err


def test_full_disk_is_one_line(monkeypatch, capsys, tmp_path):
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


def test_a_file_that_cannot_be_opened_is_one_line(monkeypatch, capsys):
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
    ("words", "said"),
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
def test_words_that_make_no_command_are_one_line(monkeypatch, capsys, words, said):
    monkeypatch.setattr("sys.argv", ["fractal", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1


def test_ctrl_c_is_one_line(tmp_path):
    """In the middle of the work, as a person presses it."""
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
    for name in ("constraints.txt", "pyproject.toml"):
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
ASK_EVERY_COMMAND = """
import sys
from typer.testing import CliRunner
from fractal_model.cli.app import COMMANDS, app
for words in ([], ["bogus"], *([name, "--no-such-option"] for name in COMMANDS)):
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2, (words, done.output, done.exception)
print(*sys.modules)
"""


def test_help_and_mistyped_options_wait_for_no_slow_import():
    done = subprocess.run(
        [sys.executable, "-c", ASK_EVERY_COMMAND],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    assert not NOT_FOR_HELP & set(done.stdout.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_of_a_command_begins_its_help(name):
    assert " ".join((load_command(name).help or "").split()).startswith(COMMANDS[name])


@pytest.mark.parametrize("words", [[], ["data"], ["models"], ["services"]])
@pytest.mark.parametrize("rich", [True, False])
def test_nothing_asked_is_answered_with_the_help_alone(monkeypatch, capsys, words, rich):
    """Typer prints its help itself with Rich, and hands it over without."""
    monkeypatch.setattr("typer.core.HAS_RICH", rich)
    monkeypatch.setattr("sys.argv", ["fractal", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr()
    assert stopped.value.code == 2
    assert shown.err == ""
    assert "Commands" in shown.out


@pytest.mark.parametrize("name", [name for name in NAMES if "\udcff" not in name])
def test_a_name_in_an_error_controls_no_terminal(monkeypatch, capsys, name):
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
    """The parameters of mar-l's levels, from its checkpoint's shapes."""
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


def test_the_ui_gets_the_address_where_others_do_not_see_it(monkeypatch, tmp_path):
    seen = []

    def run(command, *, env, check):
        seen.append((command, env["MLFLOW_BACKEND_STORE_URI"]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("fractal_model.cli.ui.require_free_port", lambda *_: None)
    monkeypatch.setattr("fractal_model.cli.ui.subprocess.run", run)
    address = "postgresql://me:s3cret@db/mlflow"
    monkeypatch.setattr("fractal_model.tracking.store.connect", lambda outputs: address)
    with pytest.raises(SystemExit):
        ui(params=REPOSITORY / "params.yaml")
    ((command, environment),) = seen
    assert "s3cret" not in " ".join(command)
    assert environment == address
