"""Metrics of a training run, kept on disk until MLflow has them: training never waits for MLflow.

Reports are appended to a file. A thread sends them in order, with their steps and times, until
MLflow has taken all. Decided here:

- The position in the file is stored after a batch has arrived. If the process is killed or MLflow's
  answer is lost, the batch is sent twice; MLflow's SQL store keeps equal points once.
- Points that MLflow will never take (a bad name, a deleted run) are moved to `refused.jsonl`. After
  an expired token, a proxy's error or a lost connection, points are sent again.
- A full disk does not end the training: a warning says so, and reports stay in memory until there
  is room again.
- Data is flushed to the operating system, not to the disk. A killed process loses nothing; a power
  failure may lose the last seconds.
"""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from mlflow.entities import Metric

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.files import atomic_file
from fractal_model.tracking.spool_delivery import Delivery, Refusal

METRICS, DELIVERED, REFUSED = "metrics.jsonl", "delivered.json", "refused.jsonl"
REQUEST_POINTS = 1000
"""Largest number of metrics that MLflow takes in one request."""
_log = logging.getLogger(__name__)


@dataclass
class _Batch:
    """Consecutive whole reports from the file, to be sent in one request."""

    end: int
    """Position in the file, in bytes, where the last report of the batch ends."""
    reports: int = 0
    points: list[Metric] = field(default_factory=list)
    unreadable: list[dict[str, object]] = field(default_factory=list)
    """Rows for `refused.jsonl`: each is a line that cannot be read as a report, with the reason."""


class MetricSpool:
    """Keeps the reports of one MLflow run in `folder`; within a `with` block it also sends them.

    `folder` belongs to one run and one process at a time. A later spool with the same folder
    continues where delivery stopped. A failed request is repeated after `retry_seconds`. The end of
    the block waits at most `leave_seconds` until all reports are delivered.

    FractalError: the folder can't be written or belongs to another run.
    """

    def __init__(
        self, folder: Path, run_id: str, *, retry_seconds: float = 5.0, leave_seconds: float = 30.0
    ) -> None:
        self._folder, self._run_id = folder, run_id
        self._retry_seconds, self._leave_seconds = retry_seconds, leave_seconds
        self._lock = threading.Lock()
        self._news, self._closing, self._abandoned = (threading.Event() for _ in range(3))
        self._thread = threading.Thread(target=self._run, name="metric-spool", daemon=True)
        self._unwritten: list[bytes] = []
        self._failures, self._failing_since = 0, 0.0
        self._warned: set[str] = set()
        try:
            self._open()
        except OSError as error:
            raise FractalError(
                f"metrics can't be kept in {folder} ({one_line(error)}): free some space or make "
                f"the folder writable"
            ) from error

    @property
    def undelivered(self) -> int:
        """Number of reports that MLflow does not have yet."""
        with self._lock:
            return self._reports + len(self._unwritten)

    def __enter__(self) -> Self:
        self._delivery = Delivery(self._run_id)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._write_unwritten()
        self._closing.set()
        self._news.set()
        try:
            self._thread.join(self._leave_seconds)
        finally:
            with self._lock:
                # A request that still hangs must not overwrite the position of a later process.
                self._abandoned.set()
                unwritten = len(self._unwritten)
            if undelivered := self.undelivered:
                lost = f", except {unwritten} lost to a full disk" if unwritten else ""
                _log.warning(
                    f"reports of the run {self._run_id} are not in MLflow yet ({undelivered}): "
                    f"they stay in {self._folder} until the training is started again{lost}"
                )

    def steps_of(self, metric: str) -> set[int]:
        """Steps at which the folder's file has a metric, whether MLflow has it yet or not."""
        with self._metrics.open("rb") as lines:
            with_metric = (line for line in lines if metric.encode() in line)
            points = (point for line in with_metric for point in _read_points(line) or ())
            return {point.step for point in points if point.key == metric}

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Append metrics to the file as one report with the current time. This never waits for
        MLflow and never raises."""
        report = {
            "step": int(step),
            "timestamp": time.time_ns() // 1_000_000,
            "values": {key: float(value) for key, value in values.items()},
        }
        line = json.dumps(report).encode() + b"\n"
        with self._lock:
            self._unwritten.append(line)
        self._write_unwritten()
        self._news.set()

    def _open(self) -> None:
        """Remove an incomplete last line from the file of reports, and read the position in the
        file up to which all reports are delivered."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._metrics = self._folder / METRICS
        with self._metrics.open("ab+") as file:
            file.seek(0)
            lines = file.read()
            self._end = lines.rfind(b"\n") + 1
            file.truncate(self._end)
        # After a power failure the stored position may be beyond the end of the stored metrics.
        self._delivered = min(self._read_position(), self._end)
        self._reports = lines.count(b"\n", self._delivered, self._end)
        self._write_position()

    def _read_position(self) -> int:
        try:
            delivered = json.loads((self._folder / DELIVERED).read_bytes())
            run_id, position = delivered["run_id"], int(delivered["bytes"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return 0  # Everything is sent again; MLflow keeps equal points once.
        if run_id != self._run_id:
            raise FractalError(
                f"{self._folder} holds the metrics of the MLflow run {run_id}, not of "
                f"{self._run_id}: use a separate folder for each run"
            )
        return position

    def _write_position(self) -> None:
        with atomic_file(self._folder / DELIVERED) as partial:
            partial.write_text(json.dumps({"run_id": self._run_id, "bytes": self._delivered}))

    def _write_unwritten(self) -> None:
        with self._lock:
            lines = self._unwritten
            if not lines:
                return
            try:
                _append(self._metrics, b"".join(lines), self._end)
            except OSError as error:
                self._warn_once(
                    "disk",
                    f"metrics can't be written to {self._metrics} ({one_line(error)}): they stay "
                    f"in memory until there is room, training continues",
                )
                return
            self._end += sum(map(len, lines))
            self._reports += len(lines)
            self._unwritten = []

    def _next_batch(self) -> _Batch | None:
        """Return the next reports to send, as many as fit one request but at least one; None if
        none are left."""
        with self._lock:
            start, end = self._delivered, self._end
        if start == end:
            return None
        batch = _Batch(start)
        with self._metrics.open("rb") as file:
            file.seek(start)
            while batch.end < end:
                line = file.readline()
                if not line:
                    raise OSError(f"{self._metrics} was cut short: restore it from a copy")
                points = _read_points(line)
                room = REQUEST_POINTS - len(batch.points)
                if batch.reports and len(points or ()) > room:
                    break
                if points is None:
                    text = line.decode(errors="replace")
                    batch.unreadable.append({"reason": "not a report", "line": text})
                batch.points += points or ()
                batch.reports += 1
                batch.end += len(line)
        return batch

    def _record_delivery(self, batch: _Batch, refusals: Sequence[Refusal]) -> None:
        """Store that `batch` is delivered, and write the points that MLflow refused to
        `refused.jsonl`."""
        rows: list[dict[str, object]] = [*batch.unreadable]
        for refusal in refusals:
            for point in refusal.points:
                value = {"key": point.key, "value": point.value}
                time_of_point = {"step": point.step, "timestamp": point.timestamp}
                rows.append({"reason": refusal.reason, **value, **time_of_point})
        with self._lock:
            if self._abandoned.is_set():
                return
            if rows:
                with (self._folder / REFUSED).open("a") as file:
                    file.writelines(json.dumps(row) + "\n" for row in rows)
            self._delivered = batch.end
            self._reports -= batch.reports
            # If the disk is full, the next process sends some points again, which is harmless.
            with contextlib.suppress(OSError):
                self._write_position()
        place = f"stored in {self._folder / REFUSED}"
        for refusal in refusals:
            text = f"MLflow refuses {refusal.subject} ({refusal.reason}): {place}"
            self._warn_once(refusal.subject, text)
        if batch.unreadable:
            self._warn_once("lines", f"{self._metrics} has lines that are not reports: {place}")

    def _run(self) -> None:
        while not self._abandoned.is_set():
            self._news.clear()
            try:
                batch = self._next_batch()
                if batch is not None:
                    refusals = self._delivery.send(batch.points)
                    self._count_success()
                    self._record_delivery(batch, refusals)
                elif self._closing.is_set():
                    return
                else:
                    self._news.wait()
            # Whatever a store raises, the next attempt may succeed, and only this thread makes it.
            except Exception as error:
                self._count_failure(error)
                # A pause ends early when the `with` block ends, then when its waiting time is over.
                interrupt = self._abandoned if self._closing.is_set() else self._closing
                interrupt.wait(self._retry_seconds)

    def _count_failure(self, error: Exception) -> None:
        """Count a failed request. Warn only at the second failure in a row, as a single one is
        common."""
        self._failures += 1
        if self._failures == 1:
            self._failing_since = time.monotonic()
        if self._failures == 2 and not self._abandoned.is_set():
            _log.warning(
                f"metrics do not reach MLflow ({one_line(error)}): training continues, they are "
                f"kept in {self._folder}"
            )

    def _count_success(self) -> None:
        if self._failures >= 2:
            pause = f"{time.monotonic() - self._failing_since:.0f} s"
            reports = f"reports are being sent ({self.undelivered})"
            _log.warning(f"metrics reach MLflow again, after {pause}: {reports}")
        self._failures = 0

    def _warn_once(self, subject: str, text: str) -> None:
        if subject not in self._warned:
            self._warned.add(subject)
            _log.warning(text)


def _append(path: Path, data: bytes, size: int) -> None:
    """Append `data` to a file that has `size` bytes. If that raises an OSError, cut the file back
    to `size` bytes."""
    with path.open("ab", buffering=0) as file:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(size)
            raise


def _read_points(line: bytes) -> list[Metric] | None:
    """Return the metrics in a line of the file of reports; None if the line is no report."""
    try:
        report = json.loads(line)
        step, timestamp = report["step"], report["timestamp"]
        return [Metric(k, float(v), timestamp, step) for k, v in report["values"].items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
