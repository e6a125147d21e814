"""The playground as a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.support.ports import free_ports


@contextmanager
def serve_playground(folder: Path, *models: str) -> Iterator[str]:
    """Serve models from `folder`; yield the address. Afterwards there must be no traceback."""
    port = free_ports(("page",))["page"]
    words = [word for model in models for word in ("--model", model)]
    command = [sys.executable, "-m", "fractal_model", "playground", *words, "--port", str(port)]
    server = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while not _answers(address):
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        assert "Traceback" not in server.communicate(timeout=60)[0]


def _answers(address: str) -> bool:
    try:
        return httpx.get(address, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
