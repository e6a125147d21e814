"""Prefect's server for `make up`, which answers only requests to this machine's loopback names.

Decided here: requests with another host name are refused. Otherwise a foreign site that points its
name to 127.0.0.1 could use the login that the browser has stored. Prefect checks no host names.
"""

import flows  # noqa: F401  isort: skip  # This import comes first: it sets Prefect's environment.

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prefect.server.api import server

from fractal_model import LOOPBACK


def create_app() -> FastAPI:
    """Return Prefect's server application for uvicorn. It refuses requests to other host names."""
    app = server.create_app(final=True)

    @app.middleware("http")
    async def refuse_foreign_hosts(
        request: Request, answer: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        if request.url.hostname in LOOPBACK:
            return await answer(request)
        names = ", ".join(LOOPBACK)
        return JSONResponse({"detail": f"unknown host: this server answers to {names}"}, 403)

    return app
