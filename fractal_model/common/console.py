"""Output to the terminal: progress bars, result tables, messages, and errors on one line."""

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import typer
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from fractal_model.common.errors import FractalError, explanation
from fractal_model.common.extras import missing_extra
from fractal_model.common.logs import keep_secrets_out_of_logs
from fractal_model.common.progress import LogLines, speed_text
from fractal_model.common.safe_text import LONGEST_NAME, safe_text
from fractal_model.common.tables import FittedTable

console = Console()
INTERRUPTED = 130
_WIDEST_BAR, _WIDTH_OF_NUMBERS = 40, 35
"""Characters of a progress bar, and of the numbers beside it."""
_logs: list[Callable[[str], None]] = []


@dataclass
class _Mode:
    quiet: bool = False
    as_json: bool = False


_mode = _Mode()


def only_result_on_stdout(is_on: bool) -> AbstractContextManager[object]:
    """If `is_on`, lead all output within the block to stderr, also that of libraries, so that
    stdout is free for the command's result, which is printed after the block."""
    return redirect_stdout(sys.stderr) if is_on else nullcontext()


@contextmanager
def output_mode(*, quiet: bool, as_json: bool) -> Iterator[None]:
    """Within the block, `quiet` switches off messages and progress. `as_json` switches off results
    for people, and leaves stdout free for JSON."""
    global _mode
    before, _mode = _mode, _Mode(quiet, as_json)
    try:
        with only_result_on_stdout(as_json):
            yield
    finally:
        _mode = before


def is_quiet() -> bool:
    """True within a block of `output_mode` that switches off messages."""
    return _mode.quiet


@contextmanager
def progress_bar(
    description: str,
    total: int | None,
    *,
    images: bool = False,
    lines: bool = True,
    note_width: int = 0,
) -> Iterator[Callable[..., None]]:
    """Show the progress of a task within the block: a bar in a terminal, log lines elsewhere, but
    none if `lines` is False, because the caller writes its own. Yield the function `update(done,
    note="")`. It shows how many of `total` items are done, the note, the time left (unless `total`
    is None) and, if the items are images (`images`), the speed. Notes have up to `note_width`
    characters."""
    display = _bar if console.is_terminal else _log_lines
    if (_mode.quiet and not _logs) or not (console.is_terminal or lines):
        yield lambda done, note="": None
        return
    with display(safe_text(description, LONGEST_NAME), total, images, note_width) as show:

        def update(done: int, note: str = "") -> None:
            show(min(done, total or done), safe_text(note, LONGEST_NAME) if note else "")

        yield update


@contextmanager
def _bar(
    description: str, total: int | None, images: bool, note_width: int
) -> Iterator[Callable[[int, str], None]]:
    # A narrow terminal has a shorter bar or none, so that it shows the numbers.
    bar = min(_WIDEST_BAR, console.width - len(description) - note_width - _WIDTH_OF_NUMBERS)
    columns = (
        TextColumn("{task.description}", markup=False),
        *([BarColumn(bar_width=bar)] if bar > 0 else []),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        *([_SpeedColumn()] if images else []),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(description, total=total, note="")
        yield lambda done, note: progress.update(task, completed=done, note=note)


@contextmanager
def _log_lines(
    description: str, total: int | None, images: bool, note_width: int
) -> Iterator[Callable[[int, str], None]]:
    with LogLines(description, total, images=images, say=say) as lines:
        yield lines.update


class _SpeedColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(speed_text(task.finished_speed or task.speed or 0.0))


def show(*results: RenderableType) -> None:
    """Print results of a command: tables, or texts without secrets. With --json they are not
    printed, because the command prints its result as JSON."""
    for result in results if not _mode.as_json else ():
        if isinstance(result, str):
            console.print(safe_text(result), soft_wrap=True, markup=False)
        else:
            console.print(result)


def print_results(title: str, values: Mapping[str, float], absent: Mapping[str, str]) -> None:
    """Print a table of the metrics' values, then a line for each absent metric with its reason."""
    table = FittedTable(title, ["metric", "value"])
    for metric, value in values.items():
        table.add_row(metric, f"{value:.4f}")
    show(table, *(f"{metric} is absent: {reason}" for metric, reason in absent.items()))


@contextmanager
def errors_on_one_line() -> Iterator[None]:
    """Turn an error that the user can correct into one line on stderr and exit code 1. The line
    ends with the command-line option to change, if the error names a setting. Ctrl-C gives exit
    code 130. Any other exception is a bug and passes unchanged."""
    try:
        yield
    except KeyboardInterrupt:
        exit_interrupted()
    except Exception as error:
        line = user_error_line(error)
        if line is None:
            raise
        setting = error.setting if isinstance(error, FractalError) else ""
        flag = f" (--{setting.replace('_', '-')})" if setting else ""
        print(f"error: {line}{flag}", file=sys.stderr)
        raise SystemExit(1) from error


def user_error_line(error: BaseException) -> str | None:
    """The line that explains an error to the person at the terminal; None if it is a bug."""
    if isinstance(error, OSError) and (error.errno == errno.ENOSPC or error.filename is not None):
        return _file_error_line(error)
    return explanation(error) or missing_extra(error)


def run(app: typer.Typer) -> None:
    """Run a Typer app and end the process with its exit code. For a wrong command, option or
    argument print one line and exit with code 2."""
    keep_secrets_out_of_logs()
    command = typer.main.get_command(app)
    try:
        code = command.main(standalone_mode=False) or 0
        if code == INTERRUPTED:  # typer returns this number for an interrupt
            exit_interrupted()
        raise SystemExit(code)
    except typer.exceptions.TyperException as error:
        text = error.format_message().strip()
        if type(error).__name__ == "NoArgsIsHelpError":  # Typer does not export this class
            print(text, end="\n" if text else "")  # empty if Rich has already printed the help
        else:
            context = getattr(error, "ctx", None)
            where = context.command_path if context is not None else Path(sys.argv[0]).name
            link = " See" if text.endswith("?") else "; see"
            line = f"error: {safe_text(text).rstrip('.')}{link} `{where} --help`"
            print(line, file=sys.stderr)
        raise SystemExit(2) from error
    except typer.Abort:
        exit_interrupted()


def _file_error_line(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        where = f" at {safe_text(error.filename, LONGEST_NAME)}" if error.filename else ""
        return (
            f"the disk is full{where}: free some space and run the same command again, complete "
            "files are kept"
        )
    reason = (error.strerror or type(error).__name__).lower()
    name = safe_text(error.filename, LONGEST_NAME)
    return f"{name}: {reason}; check the path and its permissions"


def exit_interrupted() -> NoReturn:
    """End the process at once with exit code 130, without waiting for the threads of libraries."""
    print("interrupted: run the same command again to continue", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)


class HideUserErrors(logging.Filter):
    """Filter for Prefect's log. The user sees a correctable error on one line already, so the
    filter hides its record with the traceback and all later records that name the error's class."""

    def __init__(self) -> None:
        super().__init__()
        self._hidden_names = {FractalError.__name__}

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and explanation(error) is not None:
            self._hidden_names.add(type(error).__name__)
            return False
        return not any(name in record.getMessage() for name in self._hidden_names)


def say(text: str) -> None:
    """Print a message on one line, without secrets; with --quiet, nothing. Within a block of
    `redirect_messages` the message goes to the log instead."""
    if _logs:
        _logs[-1](safe_text(text))
    elif not _mode.quiet:
        console.print(safe_text(text), soft_wrap=True, markup=False)


@contextmanager
def redirect_messages(log: Callable[[str], None]) -> Iterator[None]:
    """Within the block, pass the messages of `say` in all threads to `log` instead of printing."""
    _logs.append(log)
    try:
        yield
    finally:
        _logs.pop()
