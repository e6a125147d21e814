"""Headless Chromium: a page as it is after its scripts have run, and a picture of it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

BINARY = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    BINARY is None, reason="no Chromium here: install it, as `apt-get install chromium`"
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


def opened(
    address: str, *, picture: Path | None = None, size: str = "1200,1600", wait_ms: int = 20_000
) -> str:
    """The page's HTML after `wait_ms` of the page's own time; it passes faster than ours."""
    with tempfile.TemporaryDirectory() as profile:
        command = [BINARY, *QUIET, f"--user-data-dir={profile}", f"--window-size={size}"]
        command += [f"--virtual-time-budget={wait_ms}", "--dump-dom"]
        command += [f"--screenshot={picture}"] if picture else []
        done = subprocess.run(
            [*command, address], capture_output=True, text=True, timeout=120, check=True
        )
    return done.stdout
