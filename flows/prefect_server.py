"""Prefect's server for `make up`, which answers only requests to this machine's loopback names.

Decided here: requests with another host name are refused. Otherwise a foreign site that points its
name to 127.0.0.1 could use the login that the browser has stored. Prefect checks no host names.
The check is around Prefect's application and not in it, because the actions of automations call the
application itself under another name.
"""

from collections.abc import Awaitable, Callable

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from prefect.server.api import server
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp

from fractal_model import LOOPBACK


def create_app() -> ASGIApp:
    """Return Prefect's server application for uvicorn. It refuses requests to other host names."""

    async def refuse_foreign_hosts(
        request: Request, answer: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        if request.url.hostname in LOOPBACK:
            return await answer(request)
        names = ", ".join(LOOPBACK)
        return JSONResponse({"detail": f"unknown host: this server answers to {names}"}, 403)

    return BaseHTTPMiddleware(server.create_app(final=True), dispatch=refuse_foreign_hosts)
