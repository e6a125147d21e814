"""Brings the workers' reports from Ray's controller process to a callable in this one.

Decided here: a report is a file of a folder, whole when it is seen and removed when it was handled.
Controller and workers outlive a process that is killed by some seconds: what they report
meanwhile waits in the folder, and the next run of the same training begins with it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.train import UserCallback

from fractal_model.folders import file_written_whole
from fractal_model.training.job import Report

_LOOK_SECONDS = 0.1


class Relay:
    """Within its block, `callback` hands on what all workers have reported together. `folder` is
    this run's alone, and on the machine of this process, where Ray runs the controller too."""

    def __init__(self, folder: Path, on_report: Callable[[Report], None]) -> None:
        self._folder = folder
        self._on_report = on_report
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: Exception | None = None
        self.callback = _ToFolder(folder)

    def __enter__(self) -> Relay:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._hand_on(left_behind=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()
        if self._error is not None and exception[0] is None:
            raise self._error

    def _run(self) -> None:
        finished = False
        while not finished:
            finished = self._done.wait(_LOOK_SECONDS)
            self._hand_on()

    def _hand_on(self, *, left_behind: bool = False) -> None:
        for file in sorted(self._folder.glob("[0-9]*.json")):
            try:
                report = json.loads(file.read_bytes())
                # Why an earlier run ended itself was for that run.
                if not (left_behind and "stopped" in report):
                    self._on_report(report)
            except Exception as error:
                # A machine that loses power may leave an empty file: no reason to end a training.
                if not (left_behind and isinstance(error, json.JSONDecodeError)):
                    self._error = self._error or error
            file.unlink(missing_ok=True)


class _ToFolder(UserCallback):
    """Runs in the controller. Where the disk is full the reports wait for the next one; that a run
    ended itself has to be known."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._unwritten: list[Report] = []

    def after_report(self, run_context: Any, metrics: list[Report], checkpoint: Any) -> None:
        if "stopped" in metrics[0]:
            self._write(metrics[0])
            return
        # The loss is of all workers already; the slowest of them decides about the rest.
        waiting = max(report["data_wait_share"] for report in metrics)
        self._unwritten.append({**metrics[0], "data_wait_share": waiting})
        try:
            while self._unwritten:
                self._write(self._unwritten[0])
                del self._unwritten[0]
        except OSError:
            return

    def _write(self, report: Report) -> None:
        with file_written_whole(self._folder / f"{time.time_ns():020d}.json") as partial:
            partial.write_text(json.dumps(report))
