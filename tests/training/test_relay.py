"""Reports on their way from Ray's controller to the driver."""

from __future__ import annotations

import pytest

from fractal_model.training.relay import Relay


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


def test_an_empty_file_of_a_machine_that_lost_power_ends_no_training(tmp_path):
    say(Relay(tmp_path, print), report(1))
    (tmp_path / "00000000000000000001.json").touch()
    seen: list[dict] = []
    with Relay(tmp_path, seen.append):
        pass
    assert seen == [report(1)]
    assert list(tmp_path.iterdir()) == []


def test_reports_wait_while_they_cannot_be_written(tmp_path):
    seen: list[dict] = []
    folder = tmp_path / "reports"
    with Relay(folder, seen.append) as relay:
        folder.rename(tmp_path / "away")
        say(relay, report(1))
        with pytest.raises(FileNotFoundError):
            say(relay, {"stopped": "why"})
        (tmp_path / "away").rename(folder)
        say(relay, report(2))
    assert seen == [report(1), report(2)]


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
