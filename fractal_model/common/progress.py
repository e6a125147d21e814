"""How far a long step is, in words: speeds, times, and lines for a log file."""

import threading
import time
from collections.abc import Callable
from typing import Self

SAY_SECONDS = 30.0
_WARM_UP_SECONDS = 5.0
"""What is reported so soon after the begin tells nothing of the speed: it was computed before, or
is the first image, with which libraries warm up."""
from fractal_model.common.plurals import count_of


def speed_text(images_per_second: float) -> str:
    """`120 images/s`, `2.5 images/s`, `4.2 s an image`; nothing where nothing is known."""
    if images_per_second <= 0:
        return ""
    if images_per_second < 1:
        return f"{1 / images_per_second:,.3g} s an image"
    return f"{images_per_second:,.{0 if images_per_second >= 10 else 1}f} images/s"


def duration_text(seconds: float) -> str:
    """`about 40 seconds`, `about 14 minutes`, `about 3.5 hours`."""
    for unit, length in (("day", 86400), ("hour", 3600)):
        if seconds >= 2 * length:
            return f"about {seconds / length:.1f} {unit}s"
    if seconds >= 100:
        return f"about {seconds / 60:.0f} minutes"
    return f"about {count_of(max(1, round(seconds)), 'second')}"


class LogLines:
    """A step as lines of a log file: an estimate as soon as there is one, if the step is long, then
    a line now and then, and how far it came."""

    def __init__(
        self, description: str, total: int | None, *, images: bool, say: Callable[[str], None]
    ) -> None:
        self._description, self._total, self._images, self._say = description, total, images, say
        self._begin = self._since = self._said = time.monotonic()
        self._before, self._done, self._note = 0, 0, ""
        self._is_estimated, self._ended = False, threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="progress", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._done:
            self._tell(time.monotonic())

    def update(self, done: int, note: str) -> None:
        now = time.monotonic()
        if now - self._begin < _WARM_UP_SECONDS:
            self._before, self._since = done, now
        self._done, self._note = done, note
        left = self._left(now)
        is_news = not self._is_estimated and left is not None and left >= SAY_SECONDS
        self._is_estimated |= left is not None
        if is_news or now - self._said >= SAY_SECONDS:
            self._tell(now)

    def _watch(self) -> None:
        """Lines while nothing is reported: a first batch may take long."""
        while not self._ended.wait(SAY_SECONDS):
            if (now := time.monotonic()) - self._said >= SAY_SECONDS:
                self._tell(now)

    def _tell(self, now: float) -> None:
        self._said = now
        count = f"{self._done:,}" + ("" if self._total is None else f" of {self._total:,}")
        speed = speed_text(self._speed(now)) if self._images else ""
        left = self._left(now)
        end = f"{duration_text(left)} left" if left else f"after {now - self._begin:,.0f} s"
        parts = (f"{self._description}: {count}", speed, self._note, end)
        self._say(", ".join(part for part in parts if part))

    def _speed(self, now: float) -> float:
        passed = now - self._since
        return (self._done - self._before) / passed if passed > 0 else 0.0

    def _left(self, now: float) -> float | None:
        """Seconds to the end; None where it is not known."""
        speed = self._speed(now)
        if self._total is None or speed <= 0:
            return None
        return max(0, self._total - self._done) / speed
