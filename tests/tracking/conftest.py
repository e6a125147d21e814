"""MLflow stores for tests: a SQLite file, and a server on loopback."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest

from fractal_model.tracking import store
from tests.support.mlflow_server import SIZE, running_server
from tests.support.ports import free_ports


@pytest.fixture(scope="session")
def empty_outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs with an empty store. Tests copy it, as MLflow takes seconds to create its tables."""
    outputs = tmp_path_factory.mktemp("empty") / "outputs"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store.connect(outputs)
    return outputs


@pytest.fixture
def local_store(tmp_path: Path, empty_outputs: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Connect to an empty SQLite store; return its address."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(empty_outputs, tmp_path / "outputs")
    return store.connect(tmp_path / "outputs")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a running MLflow server."""
    folder = tmp_path_factory.mktemp("server")
    port = free_ports(("mlflow",))["mlflow"]
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "2"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with running_server(command, f"http://127.0.0.1:{port}/health", folder):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def new_version(local_store: str) -> Callable[[], str]:
    """A function that registers a version of `fractal-race` without files and returns it."""
    client = mlflow.MlflowClient()
    client.create_registered_model(f"fractal-{SIZE}")
    return lambda: str(client.create_model_version(f"fractal-{SIZE}", "test://none/none").version)
