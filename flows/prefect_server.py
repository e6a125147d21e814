"""Prefect's server, which answers to the names of this machine alone (`make up` starts it).

Decided here: a page of another site whose name its owner points to 127.0.0.1 would pass for one of
the server's own, which has the login once a person has entered it; Prefect itself looks at no name.
"""

import flows  # noqa: F401  isort: skip  # first: it sets what Prefect reads

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prefect.server.api import server

from fractal_model import LOOPBACK


def create_app() -> FastAPI:
    """The server's application, for uvicorn."""
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
