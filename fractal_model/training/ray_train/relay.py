"""Brings the workers' reports from Ray's controller process to a callable in this one.

Decided here: a report is a file of a folder, whole when it is seen and removed when it was handled.
Controller and workers outlive a process that is killed by some seconds: what they report
meanwhile is for the next run of the same training, which may find it before it begins or later. A
file's name says for which run it was written.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.train import UserCallback

from fractal_model.common.errors import one_line
from fractal_model.common.files import file_written_whole
from fractal_model.training.job import REPORTED, Report, Stopped

_LOOK_SECONDS = 0.1


class Relay:
    """Within its block, `callback` hands on what all workers have reported together. `folder` is
    this run's alone, and on the machine of this process, where Ray runs the controller too.

    Leaving it raises what the callable raised first, or OSError: reports cannot be read.
    """

    def __init__(self, folder: Path, on_report: Callable[[Report | Stopped], None]) -> None:
        self._folder = folder
        self._on_report = on_report
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: Exception | None = None
        self._unreadable: OSError | None = None
        self._mark = uuid.uuid4().hex
        self.callback = _ToFolder(folder, self._mark)

    def __enter__(self) -> Relay:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._hand_on()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()
        error = self._error or self._unreadable
        if error is not None and exception[0] is None:
            raise error

    def _run(self) -> None:
        finished = False
        while not finished:
            finished = self._done.wait(_LOOK_SECONDS)
            try:
                self._hand_on()
                self._unreadable = None
            except OSError as error:  # as of a shared file system: the next look may do better
                self._unreadable = error

    def _hand_on(self) -> None:
        for file in sorted(self._folder.glob("[0-9]*.json")):
            report = self._read(file)
            # Why an earlier run ended itself was for that run.
            if report is not None and (self._is_own(file) or isinstance(report, Report)):
                try:
                    self._on_report(report)
                except Exception as error:
                    self._error = self._error or error
            file.unlink(missing_ok=True)

    def _read(self, file: Path) -> Report | Stopped | None:
        """None: what a machine that lost power left, which is no reason to end a training."""
        content = file.read_bytes()
        try:
            return REPORTED.validate_json(content)
        except ValueError as error:
            if self._is_own(file):
                self._error = self._error or error
            return None

    def _is_own(self, file: Path) -> bool:
        return file.stem.endswith(self._mark)


class _ToFolder(UserCallback):
    """Runs in the controller. Where the disk is full the reports wait for the next one; that a run
    ended itself has to be known."""

    def __init__(self, folder: Path, mark: str) -> None:
        self._folder = folder
        self._mark = mark
        self._unwritten: list[Report | Stopped] = []

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        report = _of_all([REPORTED.validate_python(each) for each in metrics])
        self._unwritten.append(report)
        try:
            while self._unwritten:
                self._write(self._unwritten[0])
                del self._unwritten[0]
        except OSError as error:
            if isinstance(report, Stopped):
                raise
            logging.getLogger(__name__).warning(
                "reports of the training wait for the next (%d now): "
                "they cannot be written to %s: %s",
                len(self._unwritten),
                self._folder,
                one_line(error),
            )

    def _write(self, report: Report | Stopped) -> None:
        name = f"{time.time_ns():020d}-{self._mark}.json"
        with file_written_whole(self._folder / name) as partial:
            partial.write_text(report.model_dump_json(exclude_none=True))


def _of_all(reports: list[Report | Stopped]) -> Report | Stopped:
    """Rank 0's, whose loss is of all workers already, with the longest wait for data of any."""
    if isinstance(reports[0], Stopped):
        return reports[0]
    longest = max(report.data_wait_share for report in reports)
    return reports[0].model_copy(update={"data_wait_share": longest})
