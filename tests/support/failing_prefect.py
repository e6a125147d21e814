"""A Prefect API that is there and answers every request with 500."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prefect.settings import PREFECT_API_URL, temporary_settings


class _Ill(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_PATCH = do_PUT = _answer

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def failing_prefect() -> Iterator[list[str]]:
    """Within the block Prefect's clients talk to it; yields the paths that it was asked for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Ill)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/api"
        with temporary_settings({PREFECT_API_URL: address}):
            yield server.asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
