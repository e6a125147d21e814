"""Transfer of the workers' reports from Ray's controller process to a function in this process.

Decided here: each report is a file, complete when it appears and removed after it is handled.
Controller and workers survive a killed driver for some seconds. The next run of the same training
reads what they reported meanwhile, before or among its own reports. A file's name contains a label
of the process that it was written for.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError
from ray.train import UserCallback

from fractal_model.common.errors import one_line
from fractal_model.common.files import atomic_file
from fractal_model.training.job import REPORT_ADAPTER, Report, Stopped

_POLL_SECONDS = 0.1


class Relay:
    """Calls `on_report`, during its `with` block, with the reports that Ray gives to `callback`.

    `folder` is used by one MLflow run, on this machine, where Ray runs its controller too. The end
    of the block raises the first error of `on_report`, or OSError: reports cannot be read."""

    def __init__(self, folder: Path, on_report: Callable[[Report | Stopped], None]) -> None:
        self._folder = folder
        self._on_report = on_report
        self._done = threading.Event()
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._error: Exception | None = None
        self._label = uuid.uuid4().hex
        self.callback = _ReportWriter(folder, self._label)

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._handle_reports()
        self._handling = self._thread.submit(self._handle_until_done)
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.shutdown()
        error = self._error or self._handling.exception()
        if error is not None and exception[0] is None:
            raise error

    def _handle_until_done(self) -> None:
        while not self._done.wait(_POLL_SECONDS):
            with suppress(OSError):  # A shared file system may answer at the next poll.
                self._handle_reports()
        self._handle_reports()

    def _handle_reports(self) -> None:
        for file in sorted(self._folder.glob("[0-9]*.json")):
            content, is_own = file.read_bytes(), file.stem.endswith(self._label)
            try:
                report = REPORT_ADAPTER.validate_json(content)
                # A reason for ending concerns only the process that it was written for.
                if is_own or isinstance(report, Report):
                    self._on_report(report)
            except Exception as error:
                # A power cut may have damaged a file for an earlier process. Training continues.
                if is_own or not isinstance(error, ValidationError):
                    self._error = self._error or error
            file.unlink(missing_ok=True)


class _ReportWriter(UserCallback):
    """Ray callback in the controller that writes each report to a file. Reports that cannot be
    written, for example to a full disk, are written with the next report. OSError: the report that
    cannot be written is a Stopped report, after which there is no next one."""

    def __init__(self, folder: Path, label: str) -> None:
        self._folder = folder
        self._label = label
        self._unwritten: list[Report | Stopped] = []

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        report = _combine_reports([REPORT_ADAPTER.validate_python(values) for values in metrics])
        self._unwritten.append(report)
        try:
            while self._unwritten:
                name = f"{time.time_ns():020d}-{self._label}.json"
                with atomic_file(self._folder / name) as partial:
                    partial.write_text(self._unwritten[0].model_dump_json(exclude_none=True))
                del self._unwritten[0]
        except OSError as error:
            if isinstance(report, Stopped):
                raise
            logging.getLogger(__name__).warning(
                "reports of the training (%d) cannot be written to %s now and are written with the "
                "next report: %s",
                len(self._unwritten),
                self._folder,
                one_line(error),
            )


def _combine_reports(reports: list[Report | Stopped]) -> Report | Stopped:
    """Return rank 0's report, with the loss of all ranks and the longest data wait of any rank."""
    if isinstance(reports[0], Stopped):
        return reports[0]
    longest = max(report.data_wait_share for report in reports if isinstance(report, Report))
    return reports[0].model_copy(update={"data_wait_share": longest})
