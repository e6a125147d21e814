"""Transfer of the workers' reports from Ray's controller process to a function in this process.

Decided here: each report is a file, complete when it appears and removed after it is handled. If
this process is killed, controller and workers survive for some seconds and still write reports. The
next process of the same training handles these reports too. A label in each file's name tells for
which process the report was written.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any, Self

from pydantic import ValidationError
from ray.train import UserCallback

from fractal_model.common.errors import one_line
from fractal_model.common.files import atomic_file
from fractal_model.training.job import REPORT_ADAPTER, Report, Stopped

_POLL_SECONDS = 0.1


class Relay:
    """Calls `on_report` with each report that Ray gives to `callback` during the `with` block.

    `folder` belongs to one MLflow run. It is on this machine, as is Ray's controller. The end of
    the block raises the first error of `on_report`, or an OSError if reports cannot be read."""

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
            with suppress(OSError):  # A shared file system may work again at the next poll.
                self._handle_reports()
        self._handle_reports()

    def _handle_reports(self) -> None:
        for file in sorted(self._folder.glob("[0-9]*.json")):
            content, is_own = file.read_bytes(), file.stem.endswith(self._label)
            try:
                report = REPORT_ADAPTER.validate_json(content)
                # A Stopped report of an earlier process must not end this one.
                if is_own or isinstance(report, Report):
                    self._on_report(report)
            except Exception as error:
                # A power cut may have damaged an earlier process's file, which is then ignored.
                if is_own or not isinstance(error, ValidationError):
                    self._error = self._error or error
            file.unlink(missing_ok=True)


class _ReportWriter(UserCallback):
    """Ray callback in the controller that writes each report to a file. If this fails, for example
    because the disk is full, the report is written with the next one. After a Stopped report there
    is no next one, so `after_report` raises the OSError."""

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
    """Return rank 0's report, with the longest data wait and the largest memory of any rank, and
    the mean utilisation of the ranks that know their peak. All ranks report the same loss: the mean
    over all ranks."""
    if isinstance(reports[0], Stopped):
        return reports[0]
    ranks = [report for report in reports if isinstance(report, Report)]
    memories = [rank.gpu_memory_gb for rank in ranks if rank.gpu_memory_gb is not None]
    shares = [rank.mfu for rank in ranks if rank.mfu is not None]
    combined = {
        "data_wait_share": max(rank.data_wait_share for rank in ranks),
        "gpu_memory_gb": max(memories, default=None),
        "mfu": fmean(shares) if shares else None,
    }
    return reports[0].model_copy(update=combined)
