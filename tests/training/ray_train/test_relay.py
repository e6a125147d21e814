"""Reports on their way from Ray's controller to the driver."""

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


def report(step: int, waited: float = 0.0) -> Report:
    return make_report(step=step, data_wait_share=waited)


def say(relay: Relay, *reports: Report | Stopped) -> None:
    """As Ray calls it, with one report of each worker."""
    metrics = [each.model_dump(exclude_none=True) for each in reports]
    relay.callback.after_report(None, metrics, None)


def test_reports_arrive_in_their_order_with_the_slowest_workers_wait(tmp_path):
    seen: list[Report | Stopped] = []
    with Relay(tmp_path / "reports", seen.append) as relay:
        for step in range(5):
            say(relay, report(step, 0.1), report(step, 0.3))
        say(relay, STOPPED, STOPPED)
    assert seen == [*(report(step, 0.3) for step in range(5)), STOPPED]
    assert list((tmp_path / "reports").iterdir()) == []


def test_what_was_reported_after_a_driver_died_comes_first(tmp_path):
    """But not why that run ended itself: this one may not."""
    died = Relay(tmp_path, lambda report: None)
    say(died, report(1))
    say(died, report(2))
    say(died, STOPPED)
    (tmp_path / ".3.partial.json").write_text('{"st')  # killed while it wrote
    seen: list[Report | Stopped] = []
    with Relay(tmp_path, seen.append) as relay:
        assert seen == [report(1), report(2)]
        say(relay, report(3))
    assert seen == [report(1), report(2), report(3)]


def test_reports_of_a_run_that_was_killed_may_still_come_later(tmp_path):
    died = Relay(tmp_path, print)
    seen: list[Report | Stopped] = []
    with Relay(tmp_path, seen.append) as relay:
        say(relay, report(1))
        say(died, report(2))
        say(died, STOPPED)
    assert seen == [report(1), report(2)]


def test_files_of_an_older_run_are_read(tmp_path):
    """As they have always been written; an absent field is one that was not measured."""
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
    seen: list[Report | Stopped] = []
    with Relay(tmp_path, seen.append):
        pass
    assert [report.model_dump(exclude_none=True) for report in seen] == [
        written,
        written | measured,
    ]


@pytest.mark.parametrize("content", [b"", b"\0" * 123, b'{"st'])
def test_what_a_machine_that_lost_power_left_ends_no_training(tmp_path, content):
    say(Relay(tmp_path, print), report(1))
    (tmp_path / "00000000000000000001-another.json").write_bytes(content)
    seen: list[Report | Stopped] = []
    with Relay(tmp_path, seen.append):
        pass
    assert seen == [report(1)]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_read_for_a_moment_loses_nothing(tmp_path, monkeypatch):
    seen: list[Report | Stopped] = []
    failed = threading.Event()
    read = Path.read_bytes

    def fails_once(file: Path) -> bytes:
        if not failed.is_set():
            failed.set()
            raise OSError(errno.ESTALE, "Stale file handle", str(file))
        return read(file)

    with Relay(tmp_path, seen.append) as relay:
        monkeypatch.setattr(Path, "read_bytes", fails_once)
        say(relay, STOPPED)
        assert failed.wait(10)
    assert seen == [STOPPED]


def test_a_folder_that_cannot_be_read_at_the_end_is_an_error(tmp_path, monkeypatch):
    def fails(file: Path) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle", str(file))

    relay = Relay(tmp_path, print).__enter__()
    monkeypatch.setattr(Path, "read_bytes", fails)
    say(relay, report(1))
    with pytest.raises(OSError, match="Stale file handle"):
        relay.__exit__(None, None, None)


def test_reports_wait_while_they_cannot_be_written(tmp_path, caplog):
    seen: list[Report | Stopped] = []
    folder = tmp_path / "reports"
    with Relay(folder, seen.append) as relay:
        folder.rename(tmp_path / "away")
        say(relay, report(1))
        assert "reports of the training wait for the next (1 now): they cannot" in caplog.text
        with pytest.raises(FileNotFoundError):
            say(relay, STOPPED)
        (tmp_path / "away").rename(folder)
        say(relay, report(2))
    assert seen == [report(1), STOPPED, report(2)]


def test_an_error_of_the_callable_is_raised_at_the_end(tmp_path):
    seen: list[Report | Stopped] = []

    def fails_once(found: Report) -> None:
        seen.append(found)
        if found.step == 1:
            raise ValueError("not this one")

    relay = Relay(tmp_path, fails_once)
    for step in range(3):
        say(relay, report(step))
    with pytest.raises(ValueError, match="not this one"), relay:
        pass
    assert [found.step for found in seen] == [0, 1, 2]
