"""Headless Chromium: the HTML, text or picture of a page after its scripts have run, and clicks."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
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
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [BINARY, *QUIET, f"--user-data-dir={profile}", f"--window-size={size}"]
        command += [f"--virtual-time-budget={wait_ms}", "--dump-dom"]
        command += [f"--screenshot={picture}"] if picture else []
        done = subprocess.run(
            [*command, address], capture_output=True, text=True, timeout=120, check=True
        )
    return done.stdout


class Page:
    """A page of a headless browser, which a test opens, clicks and photographs."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    def open(self, address: str, *, script: str = "", size: tuple[int, int] = (1200, 1600)) -> None:
        """Go to an address in a window of `size` pixels; `script` runs before the page's own."""
        self.resize(size)
        self.call("Page.enable")
        self.call("Page.addScriptToEvaluateOnNewDocument", source=script)
        self.call("Page.navigate", url=address)

    def resize(self, size: tuple[int, int]) -> None:
        width, height = size
        window = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **window)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; None if it throws."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    def text(self) -> str:
        return self.evaluate("document.body?.innerText") or ""

    def wait(self, expression: str, seconds: float = 60) -> Any:
        """Wait until an expression is true, and return its value."""
        deadline = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < deadline, f"never true: {expression} in {self.text()}"
            time.sleep(0.3)
        return value

    def wait_for_text(self, text: str) -> None:
        self.wait(f"document.body?.innerText.includes({json.dumps(text)})")

    def click(self, element: str) -> None:
        """Click with the mouse into the middle of an element, given as an expression, as soon as it
        is there. (Menus do not open for the element's own `click()`.)"""
        place = (
            f"((r) => [r.x + r.width / 2, r.y + r.height / 2])({element}.getBoundingClientRect())"
        )
        x, y = self.wait(place)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drag(self, element: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press the mouse at `start` in an element, given as an expression, move it to `end` and
        release it. Places are shares of the element's width and height."""
        box = self.wait(
            f"((r) => [r.x, r.y, r.width, r.height])({element}.getBoundingClientRect())"
        )
        steps = [
            start,
            *(
                (start[0] + (end[0] - start[0]) * k / 10, start[1] + (end[1] - start[1]) * k / 10)
                for k in range(1, 11)
            ),
        ]
        kinds = ["mousePressed", *["mouseMoved"] * 10]
        for kind, (across, down) in zip([*kinds, "mouseReleased"], [*steps, end], strict=True):
            place = {"x": box[0] + across * box[2], "y": box[1] + down * box[3]}
            self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                button="left",
                buttons=1,
                clickCount=1,
                **place,
            )

    def type(self, element: str, text: str) -> None:
        """Type a text into an element, given as an expression, as soon as it is there."""
        self.wait(f"({element}.focus(), true)")
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Press and release a key that the focused element understands, such as End."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def save(self, picture: Path) -> None:
        """Save a picture of the window as a PNG of 128 colours, small enough for the repository."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        image = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
        image.quantize(128, dither=Image.Dither.NONE).save(picture, optimize=True)

    def call(self, method: str, **parameters: object) -> dict:
        self._connection.send(json.dumps({"id": 1, "method": method, "params": parameters}))
        while (answer := json.loads(self._connection.recv(timeout=60))).get("id") != 1:
            continue  # an event, not the answer
        return answer["result"]


def text_after_login(address: str, storage: dict[str, str], expected: str) -> str:
    """The text of a page as soon as it contains `expected`, or after a minute.

    The browser's local storage has the entries of `storage` from the start.
    """
    script = "".join(
        f"localStorage.setItem({json.dumps(k)}, {json.dumps(storage[k])});" for k in storage
    )
    with browser_page() as page:
        page.open(address, script=script)
        deadline = time.monotonic() + 60
        text = ""
        while expected not in text and time.monotonic() < deadline:
            time.sleep(0.5)
            text = page.text()
    return text


@contextmanager
def browser_page() -> Iterator[Page]:
    """Yield an empty page of a new browser."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
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
            with connect(url, proxy=None, max_size=None) as connection:
                yield Page(connection)
        finally:
            browser.terminate()
            browser.wait(30)
