"""Metrics reach MLflow once and in order, even if the server or the process fails."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest

from fractal_model.common.errors import FractalError
from fractal_model.tracking.spool import DELIVERED, METRICS, REFUSED, MetricSpool
from fractal_model.tracking.training_history import report_values
from tests.support.mlflow_server import Server, eventually

NOWHERE = "http://127.0.0.1:9"
RETRY = 0.1


class Proxy(ThreadingHTTPServer):
    """A proxy between client and server. Its `mode` is forward, fail (status 500), hang (forward
    too late), or lose (forward, but lose the answer)."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _ProxyHandler)
        self.target, self.mode = f"http://127.0.0.1:{port}", "forward"
        self.uri = f"http://127.0.0.1:{self.server_port}"
        self.seen: list[str] = []
        """The mode at the time of each request that logs metrics."""


class _ProxyHandler(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        mode, body = self.server.mode, self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.path.endswith("log-batch"):
            self.server.seen.append(mode)
        if mode == "hang":
            time.sleep(2)
        status, answer = (500, b"down") if mode == "fail" else self._forward(body)
        if mode == "lose":
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _forward(self, body: bytes) -> tuple[int, bytes]:
        request = urllib.request.Request(self.server.target + self.path, body or None)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    do_GET = do_POST = _answer

    def log_message(self, *arguments: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # The client has closed the connection.
            super().handle()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def proxy(server) -> Iterator[Proxy]:
    proxy = Proxy(server.port)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield proxy
    proxy.shutdown()
    proxy.server_close()
    thread.join()


@pytest.fixture
def run_id(server) -> str:
    return mlflow.MlflowClient(server.uri).create_run("0").info.run_id


@pytest.fixture(autouse=True)
def _tracking_uri(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # With one retry MLflow's client does not wait; with more it waits for seconds.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    mlflow.set_tracking_uri(None)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if before is not None:
        os.environ["MLFLOW_TRACKING_URI"] = before


@contextlib.contextmanager
def spooling(
    folder: Path, run_id: str, uri: str, *, leave_seconds: float = 15
) -> Iterator[MetricSpool]:
    mlflow.set_tracking_uri(uri)
    spool = MetricSpool(folder, run_id, retry_seconds=RETRY, leave_seconds=leave_seconds)
    with spool:
        yield spool


def log_steps(spool: MetricSpool, steps: range) -> None:
    for step in steps:
        spool.log({"loss": 1 / (step + 1), "norm": float(step)}, step=step)


def history(server: Server, run_id: str, key: str = "loss") -> list[tuple[int, int, float]]:
    """Points in the server's database in the order of arrival, which MLflow's API does not show."""
    query = (
        "SELECT step, timestamp, CASE WHEN is_nan THEN 'nan' ELSE value END FROM metrics "
        "WHERE run_uuid = ? AND key = ? ORDER BY rowid"
    )
    with contextlib.closing(sqlite3.connect(server.database)) as connection:
        rows = connection.execute(query, (run_id, key)).fetchall()
    return [(step, timestamp, float(value)) for step, timestamp, value in rows]


def spooled(folder: Path, key: str = "loss") -> list[tuple[int, int, float]]:
    rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [(r["step"], r["timestamp"], r["values"][key]) for r in rows if key in r["values"]]


def warnings_of(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("fractal_model")]


def test_all_points_arrive_with_step_time_and_value(server, run_id, tmp_path, caplog):
    before = time.time() * 1000
    with spooling(tmp_path, run_id, server.uri) as spool:
        log_steps(spool, range(20))
        spool.log({"loss": math.nan}, step=20)
        spool.log({"loss": math.inf}, step=21)
    points = history(server, run_id)
    assert spool.undelivered == 0
    assert [step for step, _, _ in points] == list(range(22))
    assert points[:20] == spooled(tmp_path)[:20]
    assert math.isnan(points[20][2]) and points[21][2] > 1e308
    assert all(before - 1 <= when <= time.time() * 1000 for _, when, _ in points)
    answer = mlflow.MlflowClient(server.uri).get_metric_history(run_id, "loss")
    assert repr([(m.step, m.timestamp, m.value) for m in answer]) == repr(points)
    assert warnings_of(caplog) == []


def test_many_reports_need_few_requests_and_a_large_one_several(server, proxy, run_id, tmp_path):
    with spooling(tmp_path, run_id, NOWHERE, leave_seconds=0) as spool:
        log_steps(spool, range(1200))
        spool.log({f"m{i}": float(i) for i in range(1500)}, step=7)
    assert spool.undelivered == 1201
    with spooling(tmp_path, run_id, proxy.uri):
        pass
    assert proxy.seen == ["forward"] * 5  # 2400 points in three requests, 1500 in two
    assert history(server, run_id) == spooled(tmp_path)
    assert history(server, run_id, "m1499")[0][2] == 1499


def test_reports_arrive_after_the_server_was_killed_and_restarted(server, run_id, tmp_path, caplog):
    with spooling(tmp_path, run_id, server.uri) as spool:
        log_steps(spool, range(10))
        eventually(lambda: spool.undelivered == 0)
        server.kill()
        log_steps(spool, range(10, 20))
        eventually(lambda: warnings_of(caplog))
        time.sleep(5 * RETRY)
        assert spool.undelivered == 10
        server.start()
        log_steps(spool, range(20, 30))
    assert history(server, run_id) == spooled(tmp_path)
    assert [step for step, _, _ in spooled(tmp_path)] == list(range(30))
    failure, recovery = warnings_of(caplog)
    assert str(tmp_path) in failure
    assert "again" in recovery


@pytest.mark.parametrize("mode", ["fail", "hang", "lose"])
def test_a_failing_server_gets_each_point_once(
    mode, server, proxy, run_id, tmp_path, caplog, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with spooling(tmp_path, run_id, proxy.uri) as spool:
        log_steps(spool, range(5))
        spool.log({"loss": math.nan}, step=5)
        eventually(lambda: spool.undelivered == 0)
        proxy.mode = mode
        started = time.monotonic()
        log_steps(spool, range(6, 200))
        spool.log({"gap": math.nan}, step=200)
        assert time.monotonic() - started < 1
        eventually(lambda: warnings_of(caplog))
        assert spool.undelivered > 0
        proxy.mode = "forward"
    points = history(server, run_id)
    assert [step for step, _, _ in points] == list(range(200))
    assert repr(points) == repr(spooled(tmp_path))
    assert len(history(server, run_id, "gap")) == 1
    assert proxy.seen.count(mode) >= 2
    assert len(warnings_of(caplog)) == 2


def test_leaving_takes_bounded_time_and_names_undelivered_reports(proxy, run_id, tmp_path, caplog):
    proxy.mode = "hang"
    started = time.monotonic()
    with spooling(tmp_path, run_id, proxy.uri, leave_seconds=0.5) as spool:
        log_steps(spool, range(7))
    assert time.monotonic() - started < 2
    (line,) = warnings_of(caplog)
    assert "(7)" in line and str(tmp_path) in line
    # The request that still hangs changes nothing when it ends.
    spool._thread.join()
    assert spool.undelivered == 7


CHILD = """
import sys
from pathlib import Path
import mlflow
from fractal_model.tracking.spool import MetricSpool
folder, run_id, uri = sys.argv[1:]
mlflow.set_tracking_uri(uri)
with MetricSpool(Path(folder), run_id, retry_seconds=0.1) as spool:
    for step in range(10**9):
        spool.log({"loss": 1 / (step + 1), "norm": float(step)}, step=step)
        if step % 50 == 0:
            input()
"""


def test_a_spool_continues_where_a_killed_process_stopped(server, proxy, run_id, tmp_path):
    # Answers are lost, so the process dies after points arrived and before it stores that.
    proxy.mode = "lose"
    command = [sys.executable, "-c", CHILD, str(tmp_path), run_id, proxy.uri]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    child.stdin.write(b"\n\n\n")
    child.stdin.flush()
    eventually(lambda: len(proxy.seen) >= 2 and len(spooled(tmp_path)) == 151, seconds=40)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdin.close()
    assert json.loads((tmp_path / DELIVERED).read_text())["bytes"] == 0
    assert history(server, run_id)
    with spooling(tmp_path, run_id, server.uri) as spool:
        log_steps(spool, range(151, 160))
    assert [step for step, _, _ in history(server, run_id)] == list(range(160))
    assert history(server, run_id) == spooled(tmp_path)


def test_reports_of_several_threads_arrive_in_order(server, run_id, tmp_path):
    with spooling(tmp_path, run_id, server.uri) as spool:
        threads = [
            threading.Thread(target=log_steps, args=(spool, range(first, first + 100)))
            for first in (0, 1000, 2000)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    points = history(server, run_id)
    assert points == spooled(tmp_path)
    assert len({step for step, _, _ in points}) == len(points) == 300
    assert spool.undelivered == 0


def test_a_bad_metric_is_set_aside_alone(server, run_id, tmp_path, caplog):
    with spooling(tmp_path, run_id, NOWHERE, leave_seconds=0) as spool:
        log_steps(spool, range(4))
        spool.log({"loss": 0.5, "bad;name": 3.0}, step=4)
        spool.log({"loss": 0.4, "bad;name": 4.0}, step=5)
    caplog.clear()
    with spooling(tmp_path, run_id, server.uri) as spool:
        spool.log({"loss": 0.3}, step=6)
    assert [step for step, _, _ in history(server, run_id)] == list(range(7))
    rows = [json.loads(line) for line in (tmp_path / REFUSED).read_text().splitlines()]
    assert [(row["key"], row["value"], row["step"]) for row in rows] == [
        ("bad;name", 3.0, 4),
        ("bad;name", 4.0, 5),
    ]
    assert "bad;name" in rows[0]["reason"]
    (line,) = warnings_of(caplog)
    assert "bad;name" in line and REFUSED in line


@pytest.mark.parametrize("deleted", [True, False])
def test_a_deleted_or_unknown_run_blocks_nothing(deleted, server, proxy, run_id, tmp_path, caplog):
    if deleted:
        mlflow.MlflowClient(server.uri).delete_run(run_id)
    with spooling(tmp_path, run_id if deleted else "0" * 32, proxy.uri) as spool:
        log_steps(spool, range(3))
        eventually(lambda: spool.undelivered == 0)
        log_steps(spool, range(3, 6))
    assert spool.undelivered == 0
    assert len((tmp_path / REFUSED).read_text().splitlines()) == 12
    assert len(warnings_of(caplog)) == 1


def test_a_spool_works_without_a_server(tmp_path):
    uri = f"sqlite:///{tmp_path / 'm.db'}"
    client = mlflow.MlflowClient(uri)
    run_id = client.create_run("0").info.run_id
    with spooling(tmp_path / "s", run_id, uri) as spool:
        log_steps(spool, range(3))
        spool.log({"bad;name": 1.0}, step=3)
        spool.log({"loss": 0.1}, step=4)
    assert [m.step for m in client.get_metric_history(run_id, "loss")] == [0, 1, 2, 4]
    assert (tmp_path / "s" / REFUSED).read_text().count("\n") == 1


def test_an_incomplete_line_is_dropped_and_an_unreadable_one_set_aside(server, run_id, tmp_path):
    whole = json.dumps({"step": 1, "timestamp": 5, "values": {"loss": 2.0}})
    (tmp_path / METRICS).write_text(f"{whole}\n\0\0\0\n{whole[:20]}")
    with spooling(tmp_path, run_id, server.uri) as spool:
        assert spool.undelivered == 2
        spool.log({"loss": 1.0}, step=2)
    assert [(step, value) for step, _, value in history(server, run_id)] == [(1, 2.0), (2, 1.0)]
    assert "not a report" in (tmp_path / REFUSED).read_text()


@pytest.mark.parametrize(
    "position", ["", "{", '{"run_id": "r"}', '{"run_id": "r", "bytes": 99999}']
)
def test_a_lost_position_means_that_everything_is_sent_again(position, tmp_path):
    log_steps(MetricSpool(tmp_path, "r"), range(3))
    (tmp_path / DELIVERED).write_text(position)
    assert MetricSpool(tmp_path, "r").undelivered == (0 if "99999" in position else 3)


def test_a_folder_of_another_run_is_refused(tmp_path):
    MetricSpool(tmp_path, "first")
    with pytest.raises(FractalError, match=r"first.*second.*separate folder"):
        MetricSpool(tmp_path, "second")


def test_a_folder_that_cannot_be_created_is_named_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FractalError, match="free some space"):
        MetricSpool(tmp_path / "file", "r")


def test_reports_survive_a_full_disk_in_memory(tmp_path, caplog, monkeypatch):
    spool = MetricSpool(tmp_path, "r")
    log_steps(spool, range(2))
    limited = _FullDisk(room=30)
    monkeypatch.setattr(Path, "open", limited.open)
    log_steps(spool, range(2, 5))
    assert [step for step, _, _ in spooled(tmp_path)] == [0, 1]
    assert spool.undelivered == 5
    monkeypatch.undo()
    log_steps(spool, range(5, 7))
    assert [step for step, _, _ in spooled(tmp_path)] == list(range(7))
    (line,) = warnings_of(caplog)
    assert "No space left" in line


class _FullDisk:
    """Opens files for which appending writes `room` bytes and then fails as on a full disk."""

    def __init__(self, room: int) -> None:
        self._room, self._open = room, Path.open

    @property
    def open(self):
        opened, room = self._open, self._room

        class Full:
            def __init__(self, file) -> None:
                self._file, self._used = file, False

            def __enter__(self):
                return self

            def __exit__(self, *exception: object) -> None:
                self._file.close()

            def write(self, data) -> int:
                if self._used:
                    raise OSError(28, "No space left on device")
                self._used = True
                return self._file.write(bytes(data)[:room])

            def truncate(self, size: int) -> None:
                self._file.truncate(size)

        def open_limited(path, mode="r", *args, **kwargs):
            file = opened(path, mode, *args, **kwargs)
            return Full(file) if mode == "ab" else file

        return open_limited


def test_the_step_of_a_report_is_its_position():
    report = {"position": 640.0, "step": 10.0, "loss": 0.5, "epoch": 1.5}
    assert report_values(report) == ({"loss": 0.5, "epoch": 1.5}, 640)


@pytest.fixture(autouse=True)
def _capture_warnings(caplog) -> None:
    caplog.set_level(logging.WARNING, "fractal_model")
