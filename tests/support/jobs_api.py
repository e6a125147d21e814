"""A small Ray Jobs API on loopback, with real HTTP and web sockets, which can fail on request."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import ray
from aiohttp import WSCloseCode, web


@dataclass
class JobsApi:
    """The jobs of the server by name, and the answers that it gives."""

    jobs: dict[str, dict] = field(default_factory=dict)
    log: str = ""
    """The log of every job."""
    tails: list[tuple[int, str]] = field(default_factory=list)
    """For each of the next requests that follow a log: the number of characters that are sent, and
    what happens then: `close`, `break` or `hang`. Later requests get all and are closed."""
    polls_until_end: int = 1
    """Number of requests for a running job before it has ended."""
    failures: list[int] = field(default_factory=list)
    """HTTP statuses of the next requests that are not for the version or logs."""
    head: str = ""
    """Host name of the cluster's head."""
    ends: dict[str, object] = field(default_factory=lambda: {"status": "SUCCEEDED"})
    requests: list[str] = field(default_factory=list)
    submitted: list[dict] = field(default_factory=list)
    packages: dict[str, bytes] = field(default_factory=dict)
    address: str = ""

    def add(self, name: str, status: str = "RUNNING", **metadata: str) -> None:
        tags = {f"fractal.{key}": value for key, value in metadata.items()}
        self.jobs[name] = {
            "type": "SUBMISSION",
            "submission_id": name,
            "entrypoint": "",
            "status": status,
            "metadata": tags,
        }

    def application(self) -> web.Application:
        # The largest request that Ray's server accepts; this library's default is smaller.
        app = web.Application(middlewares=[self._record], client_max_size=100 * 1024**2)
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/nodes", self._nodes)
        app.router.add_get("/api/packages/{protocol}/{name}", self._package)
        app.router.add_put("/api/packages/{protocol}/{name}", self._upload)
        app.router.add_get("/api/jobs/", self._list)
        app.router.add_post("/api/jobs/", self._submit)
        app.router.add_get("/api/jobs/{name}", self._job)
        app.router.add_post("/api/jobs/{name}/stop", self._stop)
        app.router.add_get("/api/jobs/{name}/logs", self._whole_log)
        app.router.add_get("/api/jobs/{name}/logs/tail", self._tail)
        return app

    @web.middleware
    async def _record(self, request: web.Request, handler) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        quiet = request.path == "/api/version" or "logs" in request.path
        if self.failures and not quiet:
            return web.Response(status=self.failures.pop(0), text="Traceback:\n  deep\nit is ill")
        return await handler(request)

    async def _version(self, request: web.Request) -> web.Response:
        version = {"version": "4", "ray_version": ray.__version__, "ray_commit": ""}
        return web.json_response({**version, "session_name": ""})

    async def _nodes(self, request: web.Request) -> web.Response:
        raylet = {"isHeadNode": True, "nodeManagerHostname": self.head}
        return web.json_response({"data": {"summary": [{"raylet": raylet}]}})

    async def _package(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if request.match_info["name"] in self.packages else 404)

    async def _upload(self, request: web.Request) -> web.Response:
        self.packages[request.match_info["name"]] = await request.read()
        return web.Response()

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response(list(self.jobs.values()))

    async def _submit(self, request: web.Request) -> web.Response:
        content = await request.json()
        name = content["submission_id"]
        if name in self.jobs:
            return web.Response(status=400, text=f"submission_id {name} already exists.")
        self.submitted.append(content)
        self.add(name)
        self.jobs[name]["metadata"] = content["metadata"]
        if content["metadata"].get("answer") == "lost":
            return web.Response(status=502, text="bad gateway")
        return web.json_response({"job_id": name, "submission_id": name})

    async def _job(self, request: web.Request) -> web.Response:
        job = self.jobs.get(request.match_info["name"])
        if job is None:
            return web.Response(status=404, text="it does not exist")
        if job["status"] == "RUNNING":
            self.polls_until_end -= 1
            if self.polls_until_end < 0:
                job.update(self.ends)
        return web.json_response(job)

    async def _stop(self, request: web.Request) -> web.Response:
        self.jobs[request.match_info["name"]]["status"] = "STOPPED"
        return web.json_response({"stopped": True})

    async def _whole_log(self, request: web.Request) -> web.Response:
        return web.json_response({"logs": self.log})

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        count, then = self.tails.pop(0) if self.tails else (len(self.log), "close")
        for start in range(0, count, 7):  # pieces that do not end at lines
            await socket.send_str(self.log[start : min(start + 7, count)])
        if then == "break":
            request.transport.abort()
        elif then == "hang":
            await asyncio.sleep(600)
        else:
            await socket.close(code=WSCloseCode.OK)
        return socket


@contextmanager
def serve(api: JobsApi) -> Iterator[JobsApi]:
    """Run the API on a free port of loopback within the block."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(api.application(), shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        api.address = f"http://127.0.0.1:{runner.addresses[0][1]}"

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(timeout=20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
