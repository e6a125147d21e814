"""How far a long step is: in a log file and in words."""

from __future__ import annotations

import pytest

from fractal_model.common import console, progress
from fractal_model.common.progress import LogLines, duration_text, speed_text

SPEEDS = {0: "", 0.04: "25 s an image", 0.24: "4.17 s an image", 2.5: "2.5 images/s"}
TIMES = {0.1: "about 1 second", 40: "about 40 seconds", 840: "about 14 minutes"}


@pytest.mark.parametrize(("speed", "words"), {**SPEEDS, 1234.5: "1,234 images/s"}.items())
def test_a_slow_speed_is_said_in_seconds(speed, words):
    assert speed_text(speed) == words


@pytest.mark.parametrize(("seconds", "words"), {**TIMES, 12600: "about 3.5 hours"}.items())
def test_times_in_words(seconds, words):
    assert duration_text(seconds) == words


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def tell(seconds: float) -> None:
        now[0] = 100.0 + seconds

    return tell


def test_a_long_step_begins_with_an_estimate_and_goes_on_with_a_line_now_and_then(clock):
    """3,400 images, of which 64 take 16 s."""
    said: list[str] = []
    with LogLines("reference", 3400, images=True, say=said.append) as lines:
        clock(16)
        lines.update(64, "")
        assert said == ["reference: 64 of 3,400, 4.0 images/s, about 14 minutes left"]
        clock(32)
        lines.update(128, "")
        assert len(said) == 1
        clock(48)
        lines.update(192, "")
        assert said[1:] == ["reference: 192 of 3,400, 4.0 images/s, about 13 minutes left"]
        clock(850)
        lines.update(3400, "")
    assert said[-1] == "reference: 3,400 of 3,400, 4.0 images/s, after 850 s"


def test_what_was_kept_does_not_count_for_the_speed(clock):
    said: list[str] = []
    with LogLines("sampling", 1000, images=True, say=said.append) as lines:
        clock(0.5)
        lines.update(900, "")
        clock(20.5)
        lines.update(904, "")
    assert said[0] == "sampling: 904 of 1,000, 5 s an image, about 8 minutes left"


def test_a_short_step_is_one_line_and_one_that_did_nothing_none(clock):
    said: list[str] = []
    with LogLines("generating", 4, images=False, say=said.append) as lines:
        clock(2)
        lines.update(1, "")
        lines.update(4, "")
    with LogLines("nothing", 4, images=False, say=said.append):
        pass
    assert said == ["generating: 4 of 4, after 2 s"]


def test_an_interrupted_step_says_how_far_it_came(clock):
    said: list[str] = []

    def interrupted() -> None:
        with LogLines("found", None, images=False, say=said.append) as lines:
            clock(3)
            lines.update(12_000, "of a folder")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert said == ["found: 12,000, of a folder, after 3 s"]


def test_a_first_batch_that_takes_long_is_not_silent(monkeypatch):
    monkeypatch.setattr(progress, "SAY_SECONDS", 0.01)
    said: list[str] = []
    with LogLines("features", 10, images=True, say=said.append) as lines:
        while not said:
            lines._ended.wait(0.01)
    assert said[0].startswith("features: 0 of 10, after ")


def test_every_bar_writes_lines_where_there_is_no_terminal(capsys):
    with console.progress_bar("cat\x1b[2J[bold]", 3) as update:
        update(2, "\x07")
    out = capsys.readouterr().out
    assert out == "cat\\x1b[2J[bold]: 2 of 3, \\x07, " + out.rpartition(", ")[2]


def test_a_bar_of_a_terminal_shows_names_as_they_are_and_seconds_an_image(monkeypatch):
    terminal = console.Console(force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr(console, "console", terminal)
    with terminal.capture() as captured, console.progress_bar("[b]\x07", 9, images=True) as update:
        update(2)
    assert r"[b]\x07" in captured.get()
    task = console.Task(0, "", 9, 2, _get_time=lambda: 40.0, finished_time=40.0)
    task.finished_speed = 0.05
    assert console._Pace().render(task).plain == "20 s an image"
