"""Reports on their way from Ray's controller to the driver."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from fractal_model.training.ray_train.relay import Relay


def report(step: int, waited: float = 0.0) -> dict:
    return {"step": step, "data_wait_share": waited}


def say(relay: Relay, *metrics: dict) -> None:
    """As Ray calls it, with one report of each worker."""
    relay.callback.after_report(None, list(metrics), None)


def test_reports_arrive_in_their_order_with_the_slowest_workers_wait(tmp_path):
    seen: list[dict] = []
    with Relay(tmp_path / "reports", seen.append) as relay:
        for step in range(5):
            say(relay, report(step, 0.1), report(step, 0.3))
        say(relay, {"stopped": "why"}, {"stopped": "why"})
    assert seen == [*(report(step, 0.3) for step in range(5)), {"stopped": "why"}]
    assert list((tmp_path / "reports").iterdir()) == []


def test_what_was_reported_after_a_driver_died_comes_first(tmp_path):
    """But not why that run ended itself: this one may not."""
    died = Relay(tmp_path, lambda report: None)
    say(died, report(1))
    say(died, report(2))
    say(died, {"stopped": "why"})
    (tmp_path / ".3.partial.json").write_text('{"st')  # killed while it wrote
    seen: list[dict] = []
    with Relay(tmp_path, seen.append) as relay:
        assert seen == [report(1), report(2)]
        say(relay, report(3))
    assert seen == [report(1), report(2), report(3)]


def test_reports_of_a_run_that_was_killed_may_still_come_later(tmp_path):
    died = Relay(tmp_path, print)
    seen: list[dict] = []
    with Relay(tmp_path, seen.append) as relay:
        say(relay, report(1))
        say(died, report(2))
        say(died, {"stopped": "why"})
    assert seen == [report(1), report(2)]


@pytest.mark.parametrize("content", [b"", b"\0" * 123, b'{"st'])
def test_what_a_machine_that_lost_power_left_ends_no_training(tmp_path, content):
    say(Relay(tmp_path, print), report(1))
    (tmp_path / "00000000000000000001-another.json").write_bytes(content)
    seen: list[dict] = []
    with Relay(tmp_path, seen.append):
        pass
    assert seen == [report(1)]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_read_for_a_moment_loses_nothing(tmp_path, monkeypatch):
    seen: list[dict] = []
    failed = threading.Event()
    read = Path.read_bytes

    def fails_once(file: Path) -> bytes:
        if not failed.is_set():
            failed.set()
            raise OSError(errno.ESTALE, "Stale file handle", str(file))
        return read(file)

    with Relay(tmp_path, seen.append) as relay:
        monkeypatch.setattr(Path, "read_bytes", fails_once)
        say(relay, {"stopped": "why"})
        assert failed.wait(10)
    assert seen == [{"stopped": "why"}]


def test_a_folder_that_cannot_be_read_at_the_end_is_an_error(tmp_path, monkeypatch):
    def fails(file: Path) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle", str(file))

    relay = Relay(tmp_path, print).__enter__()
    monkeypatch.setattr(Path, "read_bytes", fails)
    say(relay, report(1))
    with pytest.raises(OSError, match="Stale file handle"):
        relay.__exit__(None, None, None)


def test_reports_wait_while_they_cannot_be_written(tmp_path, caplog):
    seen: list[dict] = []
    folder = tmp_path / "reports"
    with Relay(folder, seen.append) as relay:
        folder.rename(tmp_path / "away")
        say(relay, report(1))
        assert "reports of the training wait for the next (1 now): they cannot" in caplog.text
        with pytest.raises(FileNotFoundError):
            say(relay, {"stopped": "why"})
        (tmp_path / "away").rename(folder)
        say(relay, report(2))
    assert seen == [report(1), {"stopped": "why"}, report(2)]


def test_an_error_of_the_callable_is_raised_at_the_end(tmp_path):
    seen: list[dict] = []

    def fails_once(found: dict) -> None:
        seen.append(found)
        if found["step"] == 1:
            raise ValueError("not this one")

    relay = Relay(tmp_path, fails_once)
    for step in range(3):
        say(relay, report(step))
    with pytest.raises(ValueError, match="not this one"), relay:
        pass
    assert [found["step"] for found in seen] == [0, 1, 2]
