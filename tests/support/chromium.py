"""Headless Chromium: the HTML, text or picture of a page after its scripts have run."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

BINARY = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    BINARY is None, reason="Chromium is not installed: run `apt-get install chromium`"
)
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


def page_html(
    address: str, *, picture: Path | None = None, size: str = "1200,1600", wait_ms: int = 20_000
) -> str:
    """The page's HTML after `wait_ms` of its virtual time; a screenshot is saved to `picture`."""
    with tempfile.TemporaryDirectory() as profile:
        command = [BINARY, *QUIET, f"--user-data-dir={profile}", f"--window-size={size}"]
        command += [f"--virtual-time-budget={wait_ms}", "--dump-dom"]
        command += [f"--screenshot={picture}"] if picture else []
        done = subprocess.run(
            [*command, address], capture_output=True, text=True, timeout=120, check=True
        )
    return done.stdout


def text_after_login(address: str, storage: dict[str, str], expected: str) -> str:
    """The text of a page as soon as it contains `expected`, or after a minute.

    The browser's local storage has the entries of `storage` from the start.
    """
    script = "".join(
        f"localStorage.setItem({json.dumps(k)}, {json.dumps(storage[k])});" for k in storage
    )
    with _debugged_page() as page:
        _call(page, "Page.enable")
        _call(page, "Page.addScriptToEvaluateOnNewDocument", source=script)
        _call(page, "Page.navigate", url=address)
        deadline = time.monotonic() + 60
        text = ""
        while expected not in text and time.monotonic() < deadline:
            time.sleep(0.5)
            answer = _call(page, "Runtime.evaluate", expression="document.body?.innerText ?? ''")
            text = answer["result"]["value"]
    return text


@contextmanager
def _debugged_page() -> Iterator[ClientConnection]:
    """Yield a DevTools connection to an empty page of a new browser."""
    with tempfile.TemporaryDirectory() as profile:
        command = [BINARY, *QUIET, f"--user-data-dir={profile}", "--remote-debugging-port=0"]
        browser = subprocess.Popen(
            [*command, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            file, deadline = Path(profile) / "DevToolsActivePort", time.monotonic() + 60
            while not (file.exists() and file.read_text().strip()):
                assert browser.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            port = file.read_text().split()[0]
            pages = httpx.get(f"http://127.0.0.1:{port}/json/list", trust_env=False).json()
            (url,) = [page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page"]
            with connect(url, proxy=None, max_size=None) as page:
                yield page
        finally:
            browser.terminate()
            browser.wait(30)


def _call(page: ClientConnection, method: str, **parameters: object) -> dict:
    page.send(json.dumps({"id": 1, "method": method, "params": parameters}))
    while (answer := json.loads(page.recv(timeout=60))).get("id") != 1:
        continue  # an event, not the answer
    return answer["result"]
