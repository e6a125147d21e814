"""An HTTP server on loopback that sends one file, as well or as badly as a test asks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """Sends `content` at every path. The fields can be changed between requests."""

    content: bytes
    status: int = 200
    """Status of every answer; answers other than 200 have a short text as their body."""
    content_type: str = "application/octet-stream"
    has_ranges: bool = True
    has_length: bool = True
    breaks: list[int] = field(default_factory=list)
    """Number of bytes after which each of the next answers breaks off."""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Range header of each request so far."""
    address: str = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.requests.append((request.path, wanted))
        assert request.headers["Accept-Encoding"] == "identity"
        body, status = self.content, self.status
        if status != 200:
            body = b"nothing here"
        elif wanted and self.has_ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            is_inside = start < len(self.content)
            span = f"{start}-{len(self.content) - 1}" if is_inside else "*"
            body, status = self.content[start:], 206 if is_inside else 416
        request.send_response(status)
        request.send_header("Content-Type", self.content_type)
        if status in (206, 416):
            request.send_header("Content-Range", f"bytes {span}/{len(self.content)}")
        if self.has_length:
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: self.breaks.pop(0)] if self.breaks else body)


@contextmanager
def serving(content: bytes) -> Iterator[FileServer]:
    """Serve `content` within the block."""
    server = FileServer(content)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        server.address = f"http://127.0.0.1:{listener.server_port}"
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown()
            thread.join()
