"""A job's log: followed over connections that end, and taken apart."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress

import aiohttp

from fractal_model.training.job import Report
from fractal_model.training.ray_jobs.driver import MARKER

REOPEN_SECONDS = 1.0
QUIET_SECONDS = 300.0
"""A connection that is silent for so long may be half open: another one is opened."""


@contextmanager
def follow_log(connect: Callable[[], AsyncIterator[str]]) -> Iterator[Callable[[float], str]]:
    """Follow a job's log for the block; `connect` opens the log from its beginning.

    Yields a function that waits at most so many seconds and returns the next part of the log, empty
    if nothing comes. Every part comes once.
    """
    texts, coming = _new_texts(connect), None

    async def next_part(seconds: float) -> str:
        nonlocal coming
        # Kept from call to call: to give up waiting for the next text would close the connection.
        coming = coming or asyncio.ensure_future(anext(texts))
        done, _ = await asyncio.wait({coming}, timeout=seconds)
        if not done:
            return ""
        text, coming = coming.result(), None
        return text

    with asyncio.Runner() as runner:
        yield lambda seconds: runner.run(next_part(seconds))


async def _new_texts(connect: Callable[[], AsyncIterator[str]]) -> AsyncIterator[str]:
    """Yield the log without end; when a connection ends or breaks, open another one and leave out
    what was read before."""
    position = 0
    while True:
        texts, known = connect(), position
        with suppress(StopAsyncIteration, RuntimeError, OSError, aiohttp.ClientError):
            while True:
                async with asyncio.timeout(QUIET_SECONDS):
                    text = await anext(texts)
                new, known = text[known:], max(0, known - len(text))
                position += len(new)
                if new:
                    yield new
        await asyncio.sleep(REOPEN_SECONDS)


class JobLog:
    """Takes a log apart: reports, the result, and lines for people."""

    def __init__(self, on_report: Callable[[Report], None], on_line: Callable[[str], None]) -> None:
        self._on_report = on_report
        self._on_line = on_line
        self._rest = ""
        self._position = 0
        self.checkpoint: str | None = None
        self.error: str | None = None

    def read(self, text: str) -> None:
        """Take some more of the log, cut anywhere."""
        self._position += len(text)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._line(line)

    def complete(self, whole: str) -> None:
        """Take the whole log of a job that has ended; what was read before is left out."""
        self.read(whole[self._position :] + "\n")

    def _line(self, line: str) -> None:
        content = None
        if line.startswith(MARKER):
            with suppress(ValueError):  # another process has written into the line
                content = json.loads(line.removeprefix(MARKER))
        if content is None:
            if line.strip():
                self._on_line(line)
            return
        if "report" in content:
            self._on_report(Report.model_validate(content["report"]))
        self.checkpoint = content.get("checkpoint", self.checkpoint)
        self.error = content.get("error", self.error)
