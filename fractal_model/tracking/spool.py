"""Metrics of a training run, kept on disk until MLflow has them: training never waits for it.

Reports are appended to a file, and a thread sends them in order, as they were taken (step and
time), for as long as it takes. What it decides:

- How far the file is delivered is written down after a batch arrived. A process that is killed, or
  an answer that is lost, makes a batch go twice; MLflow's SQL store keeps an equal point once.
- Nothing but a refusal for ever (a bad name, a deleted run) sets points aside; an expired token, a
  proxy's error or a server that is away only make them wait.
- A disk that is full does not end the training either: reports stay in memory, which one warning
  says, and are written when there is room again.
- Written is flushed to the operating system, not to the disk: a killed process loses nothing, a
  machine that loses power may lose the last seconds.
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
"""Most metrics that MLflow takes in one request."""
_log = logging.getLogger(__name__)


@dataclass
class _Batch:
    """Whole reports from the file, up to the byte `end`."""

    end: int
    reports: int = 0
    points: list[Metric] = field(default_factory=list)
    unreadable: list[dict[str, object]] = field(default_factory=list)
    """Lines that are no reports, as rows of `refused.jsonl`."""


class MetricSpool:
    """Keeps the reports of one MLflow run in `folder`; as a context, sends them too.

    `folder` belongs to one run and one process at a time. Opened again, it goes on where delivery
    stopped. Leaving waits at most `leave_seconds` for what is not delivered yet.

    FractalError when it is made: the folder can't be written or is another run's.
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
        self._failures, self._away_since = 0, 0.0
        self._said: set[str] = set()
        try:
            self._open()
        except OSError as error:
            raise FractalError(
                f"metrics can't be kept in {folder} ({one_line(error)}): make room or make the "
                f"folder writable"
            ) from error

    @property
    def undelivered(self) -> int:
        """Reports that MLflow does not have yet."""
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
                # A request that still hangs must not move what another process then has moved.
                self._abandoned.set()
                unwritten = len(self._unwritten)
            if waiting := self.undelivered:
                lost = f", but for {unwritten} lost, as there is no room" if unwritten else ""
                _log.warning(
                    f"reports of the run {self._run_id} are not in MLflow yet ({waiting}): they "
                    f"wait in {self._folder}, until the same training is started again{lost}"
                )

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Keep one report of now. Neither MLflow nor the disk makes it wait or raise."""
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

    # The files

    def _open(self) -> None:
        """Drop a line that a crash cut short, and find where delivery stopped."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._metrics = self._folder / METRICS
        with self._metrics.open("ab+") as file:
            file.seek(0)
            content = file.read()
            self._end = content.rfind(b"\n") + 1
            file.truncate(self._end)
        # Beyond the end it was written by a machine that lost power before the metrics were.
        self._delivered = min(self._read_position(), self._end)
        self._reports = content.count(b"\n", self._delivered, self._end)
        self._write_position()

    def _read_position(self) -> int:
        try:
            known = json.loads((self._folder / DELIVERED).read_bytes())
            run_id, position = known["run_id"], int(known["bytes"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return 0  # All of it again, which MLflow keeps once.
        if run_id != self._run_id:
            raise FractalError(
                f"{self._folder} keeps the metrics of the MLflow run {run_id}, not of "
                f"{self._run_id}: give each run its own folder"
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
                self._say_once(
                    "disk",
                    f"metrics can't be written to {self._metrics} ({one_line(error)}): they are "
                    f"kept in memory until there is room, training goes on",
                )
                return
            self._end += sum(map(len, lines))
            self._reports += len(lines)
            self._unwritten = []

    def _next_batch(self) -> _Batch | None:
        """As many whole reports as fit a request, at least one; None when all are delivered."""
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
                    raise OSError(f"{self._metrics} is shorter than it was: restore it")
                points = _points(line)
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

    def _settle(self, batch: _Batch, refusals: Sequence[Refusal]) -> None:
        """The batch is in MLflow, except what is set aside."""
        rows: list[dict[str, object]] = [*batch.unreadable]
        for refusal in refusals:
            for point in refusal.points:
                value = {"key": point.key, "value": point.value}
                moment = {"step": point.step, "timestamp": point.timestamp}
                rows.append({"reason": refusal.reason, **value, **moment})
        with self._lock:
            if self._abandoned.is_set():
                return
            if rows:
                with (self._folder / REFUSED).open("a") as file:
                    file.writelines(json.dumps(row) + "\n" for row in rows)
            self._delivered = batch.end
            self._reports -= batch.reports
            # Without room for it, the next process sends more than it must, which does no harm.
            with contextlib.suppress(OSError):
                self._write_position()
        aside = f"set aside in {self._folder / REFUSED}"
        for refusal in refusals:
            text = f"MLflow refuses {refusal.subject} ({refusal.reason}): {aside}"
            self._say_once(refusal.subject, text)
        if batch.unreadable:
            self._say_once("lines", f"{self._metrics} has lines that are no reports: {aside}")

    # The thread

    def _run(self) -> None:
        while not self._abandoned.is_set():
            self._news.clear()
            try:
                batch = self._next_batch()
                if batch is not None:
                    refusals = self._delivery.send(batch.points)
                    self._count_success()
                    self._settle(batch, refusals)
                elif self._closing.is_set():
                    return
                else:
                    self._news.wait()
            # Whatever a store raises, the next attempt may do better, and this thread is the
            # only one that makes it.
            except Exception as error:
                self._count_failure(error)
                # Leaving cuts the wait short once; from then on only its end does.
                cut = self._abandoned if self._closing.is_set() else self._closing
                cut.wait(self._retry_seconds)

    def _count_failure(self, error: Exception) -> None:
        """One failed request is no news; the second is, once until there is an answer."""
        self._failures += 1
        if self._failures == 1:
            self._away_since = time.monotonic()
        if self._failures == 2 and not self._abandoned.is_set():
            _log.warning(
                f"metrics do not get to MLflow ({one_line(error)}): training goes on, they are "
                f"kept in {self._folder}"
            )

    def _count_success(self) -> None:
        if self._failures >= 2:
            away = f"{time.monotonic() - self._away_since:.0f} s"
            reports = f"reports are being sent ({self.undelivered})"
            _log.warning(f"metrics get to MLflow again, after {away}: {reports}")
        self._failures = 0

    def _say_once(self, subject: str, text: str) -> None:
        if subject not in self._said:
            self._said.add(subject)
            _log.warning(text)


def _append(path: Path, data: bytes, size: int) -> None:
    """All of `data` or nothing: a half-written line would spoil the next one."""
    with path.open("ab", buffering=0) as file:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(size)
            raise


def _points(line: bytes) -> list[Metric] | None:
    """The report's metrics; None where the line is no report."""
    try:
        report = json.loads(line)
        step, timestamp = report["step"], report["timestamp"]
        return [Metric(k, float(v), timestamp, step) for k, v in report["values"].items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
