"""Brings the workers' reports from Ray's controller process to a callable in this one.

Decided here: a report is a file of a folder, whole when it is seen and removed when it was handled.
Controller and workers outlive a process that is killed by some seconds. What they report meanwhile
is for the next run of the same training, which may read it before its own reports or among them. A
file's name says for which run it was written.
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

_LOOK_SECONDS = 0.1


class Relay:
    """Within its block, `callback` hands on what all workers have reported together. `folder` is
    this run's alone, and on the machine of this process, where Ray runs the controller too.

    Leaving the block raises the first error of `on_report`, or OSError: reports cannot be read.
    """

    def __init__(self, folder: Path, on_report: Callable[[Report | Stopped], None]) -> None:
        self._folder = folder
        self._on_report = on_report
        self._done = threading.Event()
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._error: Exception | None = None
        self._label = uuid.uuid4().hex
        self.callback = _ToFolder(folder, self._label)

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._hand_on()
        self._handing_on = self._thread.submit(self._hand_on_until_done)
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.shutdown()
        error = self._error or self._handing_on.exception()
        if error is not None and exception[0] is None:
            raise error

    def _hand_on_until_done(self) -> None:
        while not self._done.wait(_LOOK_SECONDS):
            with suppress(OSError):  # as of a shared file system: the next look may do better
                self._hand_on()
        self._hand_on()

    def _hand_on(self) -> None:
        for file in sorted(self._folder.glob("[0-9]*.json")):
            content, is_own = file.read_bytes(), file.stem.endswith(self._label)
            try:
                report = REPORT_ADAPTER.validate_json(content)
                # The reason why an earlier run ended itself was for that run.
                if is_own or isinstance(report, Report):
                    self._on_report(report)
            except Exception as error:
                # A file of an earlier run may have been damaged when its machine lost power: this
                # does not end a training.
                if is_own or not isinstance(error, ValidationError):
                    self._error = self._error or error
            file.unlink(missing_ok=True)


class _ToFolder(UserCallback):
    """Runs in the controller. Where the disk is full, reports wait for the next one to be written;
    only the report that the run ended itself must not wait."""

    def __init__(self, folder: Path, label: str) -> None:
        self._folder = folder
        self._label = label
        self._unwritten: list[Report | Stopped] = []

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        report = _of_all([REPORT_ADAPTER.validate_python(each) for each in metrics])
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
                "reports of the training wait for the next (%d now): "
                "they cannot be written to %s: %s",
                len(self._unwritten),
                self._folder,
                one_line(error),
            )


def _of_all(reports: list[Report | Stopped]) -> Report | Stopped:
    """Rank 0's report, whose loss is of all workers, with the longest wait for data of any rank."""
    if isinstance(reports[0], Stopped):
        return reports[0]
    longest = max(each.data_wait_share for each in reports if isinstance(each, Report))
    return reports[0].model_copy(update={"data_wait_share": longest})
