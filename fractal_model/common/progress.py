"""The progress of a long task in words: speeds, durations, and lines for a log file."""

import threading
import time
from collections.abc import Callable
from typing import Self

from fractal_model.common.plurals import count_of

LINE_SECONDS = 30.0
_WARM_UP_SECONDS = 5.0
"""Seconds at the start of a task that do not count for its speed. During them the first batch is
slow, and images that an earlier run stored are counted at once."""
_SMALLEST_SHARE = 0.01
"""Share of a task's work that must be done before the time left is estimated."""


def speed_text(images_per_second: float) -> str:
    """A speed in words, such as `120 images/s` or `4.2 s an image`; "" if it is not known yet."""
    if images_per_second <= 0:
        return ""
    if images_per_second < 1:
        return f"{1 / images_per_second:,.3g} s an image"
    return f"{images_per_second:,.{0 if images_per_second >= 10 else 1}f} images/s"


def duration_text(seconds: float) -> str:
    """A duration in words, such as `about 40 seconds` or `about 3.5 hours`."""
    for unit, length in (("day", 86400), ("hour", 3600)):
        if seconds >= 2 * length:
            return f"about {seconds / length:.1f} {unit}s"
    if seconds >= 100:
        return f"about {seconds / 60:.0f} minutes"
    return f"about {count_of(max(1, round(seconds)), 'second')}"


class LogLines:
    """Reports a task's progress in a log file. The first line comes as soon as the time left can be
    estimated, if it is at least `LINE_SECONDS`. Then a line comes every `LINE_SECONDS`, and one at
    the end. `say` writes a line. If the task counts `images`, each line has the speed."""

    def __init__(
        self, description: str, total: int | None, *, images: bool, say: Callable[[str], None]
    ) -> None:
        self._description, self._total, self._images, self._say = description, total, images, say
        self._begin = self._warm_since = self._last_line = time.monotonic()
        self._warm_done, self._done, self._note = 0, 0, ""
        self._is_waiting = False  # nothing is done yet, as the caller has said
        self._is_estimated, self._ended = False, threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="progress", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._done:
            self._write_line(time.monotonic())

    def update(self, done: int, note: str) -> None:
        now = time.monotonic()
        if now - self._begin < _WARM_UP_SECONDS or self._is_waiting:
            self._warm_done, self._warm_since = done, now
        self._is_waiting = done == 0
        self._done, self._note = done, note
        left = self._seconds_left(now)
        is_first_estimate = not self._is_estimated and left is not None and left >= LINE_SECONDS
        self._is_estimated |= left is not None
        if is_first_estimate or now - self._last_line >= LINE_SECONDS:
            self._write_line(now)

    def _watch(self) -> None:
        """Write a line every `LINE_SECONDS`, also during a long batch, when `update` is not
        called."""
        while not self._ended.wait(LINE_SECONDS):
            if (now := time.monotonic()) - self._last_line >= LINE_SECONDS:
                self._write_line(now)

    def _write_line(self, now: float) -> None:
        self._last_line = now
        count = f"{self._done:,}" + ("" if self._total is None else f" of {self._total:,}")
        speed = speed_text(self._speed(now)) if self._images else ""
        left = self._seconds_left(now)
        end = f"{duration_text(left)} left" if left else f"after {now - self._begin:,.0f} s"
        parts = (f"{self._description}: {count}", speed, self._note, end)
        self._say(", ".join(part for part in parts if part))

    def _speed(self, now: float) -> float:
        passed = now - self._warm_since
        return (self._done - self._warm_done) / passed if passed > 0 else 0.0

    def _seconds_left(self, now: float) -> float | None:
        """Estimated seconds until the task ends. None if there is no total, or if too little is
        done for an estimate: first batches are often many times slower."""
        speed = self._speed(now)
        if self._total is None or speed <= 0:
            return None
        if self._done - self._warm_done < (self._total - self._warm_done) * _SMALLEST_SHARE:
            return None
        return max(0, self._total - self._done) / speed
