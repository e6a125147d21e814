"""A server on loopback that takes pushes as the Hugging Face hub does, without its large files."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_token_of_the_tests"


@dataclass
class FakeHub:
    address: str = ""
    created: list[dict] = field(default_factory=list)
    """Requests to make a repository."""
    validated: list[str] = field(default_factory=list)
    """Cards that the client asked the hub to validate."""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Content of each committed file by repository and name."""
    metadata_errors: list[str] = field(default_factory=list)
    """Errors that the hub finds in every card."""

    def answer(self, path: str, body: bytes) -> tuple[int, dict]:
        path = path.partition("?")[0]
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return 200, {"url": f"{self.address}/{self._repository(json.loads(body))}"}
        if path == "/api/validate-yaml":
            self.validated.append(json.loads(body)["content"])
            errors = [{"message": message} for message in self.metadata_errors]
            return (400 if errors else 200), {"errors": errors, "warnings": []}
        _, _, _, user, name, action, *_ = path.split("/")
        if action == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            return 200, {"files": [{"path": name, **modes} for name in names]}
        if action == "commit":
            entries = [json.loads(line) for line in body.splitlines()]
            self.files[f"{user}/{name}"] = {
                entry["value"]["path"]: base64.b64decode(entry["value"]["content"])
                for entry in entries
                if entry["key"] == "file"
            }
            commit = f"{self.address}/{user}/{name}/commit/{'0' * 40}"
            return 200, {"commitUrl": commit, "commitOid": "0" * 40}
        return 404, {"error": f"unknown {path}"}

    @staticmethod
    def _repository(request: dict) -> str:
        return "/".join(filter(None, (request.get("organization"), request["name"])))


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, answer = 401, {"error": "Invalid username or password."}
            if self.headers["Authorization"] == f"Bearer {TOKEN}":
                status, answer = hub.answer(self.path, body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        hub.address = f"http://127.0.0.1:{listener.server_port}"
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            listener.shutdown()
            thread.join()
