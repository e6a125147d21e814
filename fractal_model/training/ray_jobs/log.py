"""The log of a Ray job: following it over broken connections, and parsing it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress

import aiohttp

from fractal_model.training.job import Report
from fractal_model.training.ray_jobs.driver import MARKER

REOPEN_SECONDS = 1.0
QUIET_SECONDS = 300.0
"""Seconds without new text after which the connection may be dead and a new one is opened."""


@contextmanager
def follow_log(connect: Callable[[], AsyncIterator[str]]) -> Iterator[Callable[[float], str]]:
    """Follow a job's log during the `with` block; `connect` opens the log from its beginning. Yield
    a function: it waits at most the given seconds for new text and returns the text, else ""."""
    texts, pending = _new_texts(connect), None

    async def next_part(seconds: float) -> str:
        nonlocal pending
        # The task is kept between calls, because cancelling it would close the connection.
        pending = pending or asyncio.ensure_future(anext(texts))
        done, _ = await asyncio.wait({pending}, timeout=seconds)
        if not done:
            return ""
        text, pending = pending.result(), None
        return text

    with asyncio.Runner() as runner:
        yield lambda seconds: runner.run(next_part(seconds))


async def _new_texts(connect: Callable[[], AsyncIterator[str]]) -> AsyncIterator[str]:
    """Yield new text of the log, forever. When a connection ends or breaks, open a new one. It
    sends the log from the beginning again; leave out the text that was yielded before."""
    position = 0
    while True:
        texts, to_skip = connect(), position
        with suppress(StopAsyncIteration, RuntimeError, OSError, aiohttp.ClientError):
            while True:
                async with asyncio.timeout(QUIET_SECONDS):
                    text = await anext(texts)
                new, to_skip = text[to_skip:], max(0, to_skip - len(text))
                position += len(new)
                if new:
                    yield new
        await asyncio.sleep(REOPEN_SECONDS)


class JobLog:
    """Parses a job's log. Calls `on_report` for each report and `on_line` for each line for people.
    Keeps the job's result: `checkpoint`, an address, or `error`."""

    def __init__(self, on_report: Callable[[Report], None], on_line: Callable[[str], None]) -> None:
        self._on_report = on_report
        self._on_line = on_line
        self._rest = ""
        self._position = 0
        self.checkpoint: str | None = None
        self.error: str | None = None

    def read(self, text: str) -> None:
        """Parse the next part of the log. If it ends within a line, the next call completes that
        line."""
        self._position += len(text)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._parse_line(line)

    def complete(self, whole: str) -> None:
        """Parse the part of `whole`, a finished job's complete log, that `read` has not seen."""
        self.read(whole[self._position :] + "\n")

    def _parse_line(self, line: str) -> None:
        content = None
        if line.startswith(MARKER):
            with suppress(ValueError):  # Another process may have written into the line.
                content = json.loads(line.removeprefix(MARKER))
        if content is None:
            if line.strip():
                self._on_line(line)
            return
        if "report" in content:
            self._on_report(Report.model_validate(content["report"]))
        self.checkpoint = content.get("checkpoint", self.checkpoint)
        self.error = content.get("error", self.error)
