"""A job's log: followed over connections that end, and taken apart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Self

import aiohttp

from fractal_model.training.job import Report
from fractal_model.training.ray_jobs.driver import MARKER

REOPEN_SECONDS = 1.0
QUIET_SECONDS = 300.0
"""After so long without a word the connection may be a half-open one: another is opened."""
_BROKEN = (RuntimeError, OSError, aiohttp.ClientError)


class Tail:
    """What a job's log says, each part once; within its block.

    `connect` opens the log from its beginning. Where that ends or breaks it is opened again, and
    what was read before is left out.
    """

    def __init__(self, connect: Callable[[], AsyncIterator[str]]) -> None:
        self._connect = connect
        self._texts: AsyncIterator[str] | None = None
        self._next: asyncio.Task[str] | None = None
        self._position = self._known = 0

    def __enter__(self) -> Self:
        self._runner = asyncio.Runner()
        return self

    def __exit__(self, *exception: object) -> None:
        self._runner.close()

    def more(self, seconds: float) -> str:
        """What comes next; empty where nothing comes for so long."""
        return self._runner.run(self._more(seconds))

    async def _more(self, seconds: float) -> str:
        # Kept from call to call: to give up waiting for the next text would close the connection.
        self._next = self._next or asyncio.create_task(self._new_text())
        done, _ = await asyncio.wait({self._next}, timeout=seconds)
        if not done:
            return ""
        text, self._next = self._next.result(), None
        return text

    async def _new_text(self) -> str:
        while True:
            text = await self._text()
            if text is None:
                self._texts = None
                await asyncio.sleep(REOPEN_SECONDS)
                continue
            new, self._known = text[self._known :], max(0, self._known - len(text))
            self._position += len(new)
            if new:
                return new

    async def _text(self) -> str | None:
        """Of the open connection, or a new one; None where it has ended."""
        if self._texts is None:
            self._texts, self._known = self._connect(), self._position
        try:
            async with asyncio.timeout(QUIET_SECONDS):
                return await anext(self._texts, None)
        except _BROKEN:
            return None


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
        """Some more of the log, cut anywhere."""
        self._position += len(text)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._line(line)

    def complete(self, whole: str) -> None:
        """The log of a job that has ended, of which a part was read before."""
        self.read(whole[self._position :])
        self.read("\n")

    def _line(self, line: str) -> None:
        content = _content(line)
        if content is None:
            if line.strip():
                self._on_line(line)
            return
        if "report" in content:
            self._on_report(Report.model_validate(content["report"]))
        self.checkpoint = content.get("checkpoint", self.checkpoint)
        self.error = content.get("error", self.error)


def _content(line: str) -> dict | None:
    """What the driver says to us; None for a line that is for people."""
    if not line.startswith(MARKER):
        return None
    try:
        return json.loads(line.removeprefix(MARKER))
    except ValueError:  # another process has written into the line
        return None
