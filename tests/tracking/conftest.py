"""MLflow stores of the tests' own: a SQLite file, and a server on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest

from fractal_model.tracking import store
from tests.services.ports import free_ports

SIZE = "race"
NLL = 0.7


@pytest.fixture
def local_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A SQLite file, connected to."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return store.connect(tmp_path / "outputs")


@contextmanager
def answering(module: list[str], url: str, folder: Path, **variables: str) -> Iterator[None]:
    """`python -m <module>`, a server that works in `folder`; up when its page `url` answers."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *module],
            cwd=folder,
            env={**os.environ, "PATH": programs, **variables},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait_for(url, process, folder / "server.log")
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # with its workers
        process.wait(timeout=30)


def _wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.2)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server."""
    folder = tmp_path_factory.mktemp("server")
    port = free_ports(("mlflow",))["mlflow"]
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "2"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with answering(command, f"http://127.0.0.1:{port}/health", folder):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def new_version(local_store: str) -> Callable[[], str]:
    """Registers one more version of `fractal-race`, without files; returns its number."""
    client = mlflow.MlflowClient()
    client.create_registered_model(f"fractal-{SIZE}")
    return lambda: str(client.create_model_version(f"fractal-{SIZE}", "test://none/none").version)
