"""A PostgreSQL server for tests, from the system's package."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.ports import free_ports

DATABASES = ("prefect", "mlflow")
USER, PASSWORD = "fractal", "not-a-secret"


@contextmanager
def postgres() -> Iterator[dict[str, str]]:
    """Yield the variables with which the servers of `make up` use a new PostgreSQL server."""
    programs = _programs()
    (port,) = free_ports(("postgres",)).values()
    # PostgreSQL refuses to run as root, so its package has a user for it.
    user = "postgres" if os.geteuid() == 0 else None

    with TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "password").write_text(PASSWORD)
        if user is not None:
            shutil.chown(folder, user)

        def run(program: str, *arguments: str) -> None:
            subprocess.run(
                [str(programs / program), *arguments],
                check=True,
                user=user,
                cwd=folder,
                stdout=subprocess.DEVNULL,  # The server inherits it, so a pipe would never end.
                env={**os.environ, "PGPASSWORD": PASSWORD},
            )

        run("initdb", "-D", "data", "-U", USER, "-A", "scram-sha-256", "--pwfile=password", "-N")
        settings = f"-p {port} -k '{folder}' -c listen_addresses=127.0.0.1 -c max_connections=200"
        run("pg_ctl", "-D", "data", "-l", "log", "-w", "-o", settings, "start")
        try:
            for name in DATABASES:
                run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", USER, name)
            at = f"{USER}:{PASSWORD}@127.0.0.1:{port}"
            yield {
                "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{at}/prefect",
                "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg2://{at}/mlflow",
            }
        finally:
            run("pg_ctl", "-D", "data", "-m", "immediate", "-w", "stop")


def _programs() -> Path:
    """The folder of PostgreSQL's programs; the test is skipped if they are not installed."""
    if find_spec("psycopg2") is None:
        pytest.skip("psycopg2 is not installed: pip install psycopg2-binary")
    if installed := sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        return installed[-1].parent
    if program := shutil.which("initdb"):
        return Path(program).parent
    pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
