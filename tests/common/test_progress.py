"""Progress bars, progress lines, and speeds and durations in words."""

from __future__ import annotations

import pytest

from fractal_model.common import console, progress
from fractal_model.common.progress import LogLines, duration_text, speed_text

SPEEDS = {0: "", 0.04: "25 s an image", 0.24: "4.17 s an image", 2.5: "2.5 images/s"}
TIMES = {0.1: "about 1 second", 40: "about 40 seconds", 840: "about 14 minutes"}


@pytest.mark.parametrize(("speed", "words"), {**SPEEDS, 1234.5: "1,234 images/s"}.items())
def test_a_slow_speed_is_given_in_seconds_an_image(speed, words):
    assert speed_text(speed) == words


@pytest.mark.parametrize(("seconds", "words"), {**TIMES, 12600: "about 3.5 hours"}.items())
def test_durations_are_rounded_and_have_a_unit(seconds, words):
    assert duration_text(seconds) == words


@pytest.fixture
def clock(monkeypatch):
    """A function that sets the time, in seconds from the start of the test."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def set_clock(seconds: float) -> None:
        now[0] = 100.0 + seconds

    return set_clock


def test_a_long_task_gets_an_estimate_first_and_then_a_line_every_30_seconds(clock):
    """Report 3,400 images at a speed of 64 images in 16 s."""
    written: list[str] = []
    with LogLines("reference", 3400, images=True, say=written.append) as lines:
        clock(16)
        lines.update(64, "")
        assert written == ["reference: 64 of 3,400, 4.0 images/s, about 14 minutes left"]
        clock(32)
        lines.update(128, "")
        assert len(written) == 1
        clock(48)
        lines.update(192, "")
        assert written[1:] == ["reference: 192 of 3,400, 4.0 images/s, about 13 minutes left"]
        clock(850)
        lines.update(3400, "")
    assert written[-1] == "reference: 3,400 of 3,400, 4.0 images/s, after 850 s"


def test_there_is_no_estimate_after_a_first_slow_image(clock):
    written: list[str] = []
    with LogLines("sampling", 500, images=True, say=written.append) as lines:
        for seconds, done in ((17, 1), (18, 5)):
            clock(seconds)
            lines.update(done, "")
    assert len(written) == 2
    assert written[0] == "sampling: 5 of 500, 3.6 s an image, about 30 minutes left"


def test_what_was_done_before_the_work_began_does_not_count(clock):
    """A training says that its workers start, and then goes on from 400 images."""
    written: list[str] = []
    with LogLines("training", 500, images=True, say=written.append) as lines:
        for seconds, done in ((0, 0), (20, 400), (25, 410)):
            clock(seconds)
            lines.update(done, "")
    assert written[0] == "training: 410 of 500, 2.0 images/s, about 45 seconds left"


def test_stored_images_do_not_count_for_the_speed(clock):
    written: list[str] = []
    with LogLines("sampling", 1000, images=True, say=written.append) as lines:
        clock(0.5)
        lines.update(900, "")
        clock(20.5)
        lines.update(904, "")
    assert written[0] == "sampling: 904 of 1,000, 5 s an image, about 8 minutes left"


def test_a_short_task_is_one_line_and_an_empty_task_none(clock):
    written: list[str] = []
    with LogLines("generating", 4, images=False, say=written.append) as lines:
        clock(2)
        lines.update(1, "")
        lines.update(4, "")
    with LogLines("nothing", 4, images=False, say=written.append):
        pass
    assert written == ["generating: 4 of 4, after 2 s"]


def test_an_interrupted_task_reports_its_last_count(clock):
    written: list[str] = []

    def interrupt() -> None:
        with LogLines("found", None, images=False, say=written.append) as lines:
            clock(3)
            lines.update(12_000, "of a folder")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert written == ["found: 12,000, of a folder, after 3 s"]


def test_lines_are_written_while_the_first_batch_takes_long(monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.01)
    written: list[str] = []
    with LogLines("features", 10, images=True, say=written.append) as lines:
        while not written:
            lines._ended.wait(0.01)
    assert written[0].startswith("features: 0 of 10, after ")


def test_without_a_terminal_a_bar_writes_lines(capsys):
    with console.progress_bar("cat\x1b[2J[bold]", 3) as update:
        update(2, "\x07")
    out = capsys.readouterr().out
    assert out == "cat\\x1b[2J[bold]: 2 of 3, \\x07, " + out.rpartition(", ")[2]


def test_a_terminal_bar_shows_names_without_markup_and_seconds_an_image(monkeypatch):
    terminal = console.Console(force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr(console, "console", terminal)
    with terminal.capture() as captured, console.progress_bar("[b]\x07", 9, images=True) as update:
        update(2)
    assert r"[b]\x07" in captured.get()
    task = console.Task(0, "", 9, 2, _get_time=lambda: 40.0, finished_time=40.0)
    task.finished_speed = 0.05
    assert console._SpeedColumn().render(task).plain == "20 s an image"
