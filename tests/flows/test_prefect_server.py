"""Who Prefect's server answers: this machine's names, and its own automations."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from flows.prefect_server import create_app
from fractal_model import LOOPBACK


def _ask(app, host: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return await client.get("/api/health")

    return asyncio.run(ask())


@pytest.mark.parametrize("host", LOOPBACK[:2])
def test_this_machines_names_are_answered(host):
    assert _ask(create_app(), host).json() is True


def test_a_foreign_name_is_refused():
    answer = _ask(create_app(), "prefect-in-memory")
    assert (answer.status_code, answer.json()["detail"][:12]) == (403, "unknown host")


def test_the_actions_of_automations_reach_the_application():
    """They call the application that uvicorn has made, under a name of their own."""
    outer = create_app()
    from prefect.server.api.server import create_app as application_of_actions

    assert application_of_actions() is outer.app
    assert _ask(application_of_actions(), "prefect-in-memory").status_code == 200
