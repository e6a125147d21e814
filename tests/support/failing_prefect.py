"""A Prefect API that answers every request with status 500."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prefect.settings import PREFECT_API_URL, temporary_settings


class _FailingHandler(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        self.server.paths.append(self.path)
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_PATCH = do_PUT = _answer

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def failing_prefect() -> Iterator[list[str]]:
    """Let Prefect's clients use the failing API; yield the list of the paths that they request."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _FailingHandler)
    server.paths = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/api"
        with temporary_settings({PREFECT_API_URL: address}):
            yield server.paths
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
