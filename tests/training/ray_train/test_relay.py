"""Reports travel as files from Ray's controller to the driver."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path

import pytest

from fractal_model.training.job import Report, Stopped
from fractal_model.training.ray_train.relay import Relay
from tests.support.reports import make_report

STOPPED = Stopped(stopped="why")


def report(step: int, wait_share: float = 0.0) -> Report:
    return make_report(step=step, data_wait_share=wait_share)


def send(relay: Relay, *reports: Report | Stopped) -> None:
    """Call the relay's callback as Ray does, with one report of each worker."""
    metrics = [one.model_dump(exclude_none=True) for one in reports]
    relay.callback.after_report(None, metrics, None)


def test_reports_arrive_in_order_with_the_longest_wait_of_a_worker(tmp_path):
    received: list[Report | Stopped] = []
    with Relay(tmp_path / "reports", received.append) as relay:
        for step in range(5):
            send(relay, report(step, 0.1), report(step, 0.3))
        send(relay, STOPPED, STOPPED)
    assert received == [*(report(step, 0.3) for step in range(5)), STOPPED]
    assert list((tmp_path / "reports").iterdir()) == []


def test_memory_is_the_largest_and_utilisation_the_mean_of_the_workers_that_know_it(tmp_path):
    received: list[Report | Stopped] = []
    values = (0.5, 10.0), (0.3, 30.0), (None, 20.0)
    ranks = [make_report(mfu=mfu, gpu_memory_gb=memory) for mfu, memory in values]
    with Relay(tmp_path / "reports", received.append) as relay:
        send(relay, *ranks)
    assert received == [make_report(mfu=pytest.approx(0.4), gpu_memory_gb=30.0)]


def test_reports_written_after_a_driver_died_come_first(tmp_path):
    """Its reason for ending is left out, because this run may continue."""
    died = Relay(tmp_path, lambda report: None)
    send(died, report(1))
    send(died, report(2))
    send(died, STOPPED)
    (tmp_path / ".3.partial.json").write_text('{"st')  # A writer that was killed
    received: list[Report | Stopped] = []
    with Relay(tmp_path, received.append) as relay:
        assert received == [report(1), report(2)]
        send(relay, report(3))
    assert received == [report(1), report(2), report(3)]


def test_reports_of_a_killed_run_may_arrive_among_new_ones(tmp_path):
    died = Relay(tmp_path, print)
    received: list[Report | Stopped] = []
    with Relay(tmp_path, received.append) as relay:
        send(relay, report(1))
        send(died, report(2))
        send(died, STOPPED)
    assert received == [report(1), report(2)]


def test_report_files_of_earlier_versions_are_read(tmp_path):
    """The file format does not change. An absent field was not measured."""
    written = {
        "position": 80,
        "step": 10,
        "epoch": 1.25,
        "images_per_second": 9.5,
        "data_wait_share": 0.25,
        "workers": 2,
        "accumulation": 3,
        "skipped_batches": 1,
        "note": "look",
    }
    measured = {"loss": 2.5, "gradient_norm": 0.5, "learning_rate": 0.125}
    for number, content in enumerate((written, written | measured, {"stopped": "why"})):
        (tmp_path / f"{number:020d}-older.json").write_text(json.dumps(content))
    received: list[Report | Stopped] = []
    with Relay(tmp_path, received.append):
        pass
    assert [report.model_dump(exclude_none=True) for report in received] == [
        written,
        written | measured,
    ]


@pytest.mark.parametrize("content", [b"", b"\0" * 123, b'{"st'])
def test_a_file_damaged_by_a_power_cut_is_ignored(tmp_path, content):
    send(Relay(tmp_path, print), report(1))
    (tmp_path / "00000000000000000001-another.json").write_bytes(content)
    received: list[Report | Stopped] = []
    with Relay(tmp_path, received.append):
        pass
    assert received == [report(1)]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_unreadable_for_a_moment_loses_no_report(tmp_path, monkeypatch):
    received: list[Report | Stopped] = []
    failed = threading.Event()
    read = Path.read_bytes

    def fails_once(file: Path) -> bytes:
        if not failed.is_set():
            failed.set()
            raise OSError(errno.ESTALE, "Stale file handle", str(file))
        return read(file)

    with Relay(tmp_path, received.append) as relay:
        monkeypatch.setattr(Path, "read_bytes", fails_once)
        send(relay, STOPPED)
        assert failed.wait(10)
    assert received == [STOPPED]


def test_a_folder_that_is_unreadable_at_the_end_is_an_error(tmp_path, monkeypatch):
    def fails(file: Path) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle", str(file))

    relay = Relay(tmp_path, print).__enter__()
    monkeypatch.setattr(Path, "read_bytes", fails)
    send(relay, report(1))
    with pytest.raises(OSError, match="Stale file handle"):
        relay.__exit__(None, None, None)


def test_reports_that_cannot_be_written_are_written_with_the_next(tmp_path, caplog):
    received: list[Report | Stopped] = []
    folder = tmp_path / "reports"
    with Relay(folder, received.append) as relay:
        folder.rename(tmp_path / "away")
        send(relay, report(1))
        assert "reports of the training (1) cannot be written" in caplog.text
        with pytest.raises(FileNotFoundError):
            send(relay, STOPPED)
        (tmp_path / "away").rename(folder)
        send(relay, report(2))
    assert received == [report(1), STOPPED, report(2)]


def test_an_error_of_on_report_is_raised_at_the_end(tmp_path):
    received: list[Report | Stopped] = []

    def fails_once(report: Report) -> None:
        received.append(report)
        if report.step == 1:
            raise ValueError("not this one")

    relay = Relay(tmp_path, fails_once)
    for step in range(3):
        send(relay, report(step))
    with pytest.raises(ValueError, match="not this one"), relay:
        pass
    assert [report.step for report in received] == [0, 1, 2]
