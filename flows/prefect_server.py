"""Prefect's server, which answers to the names of this machine alone (`make up` starts it).

Decided here: a page of another site whose name its owner points to 127.0.0.1 would pass for one of
the server's own, which has the login once a person has entered it; Prefect itself looks at no name.
"""

import flows  # noqa: F401  isort: skip  # first: it sets what Prefect reads

from fastapi import FastAPI
from prefect.server.api import server
from starlette.middleware.trustedhost import TrustedHostMiddleware

from fractal_model import LOOPBACK


def create_app() -> FastAPI:
    """The server's application, for uvicorn."""
    app = server.create_app(final=True)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK), www_redirect=False)
    return app
