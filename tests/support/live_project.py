"""A new project folder with real servers, in which tests run the user's commands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.support import REPOSITORY
from tests.support.ports import free_ports
from tests.support.postgres import postgres


def environment(**variables: str) -> dict[str, str]:
    """The environment of this process without addresses of other servers, plus `variables`."""
    removed = ("MLFLOW_", "PREFECT_", "RAY_")
    remaining = {k: v for k, v in os.environ.items() if not k.startswith(removed)}
    return {**remaining, "PYTHONPATH": str(REPOSITORY), **variables}


class Project:
    """A new project folder with the settings `content` and free ports for its servers.

    Its commands also have the environment variables `variables`. `evaluates`: a training in Prefect
    is followed by an evaluation.
    """

    def __init__(
        self, folder: Path, content: dict, *, evaluates: bool = False, **variables: str
    ) -> None:
        self.folder = folder
        self.variables = variables
        self.ports = free_ports()
        self.start_output = ""
        folder.mkdir()
        services = {**self.ports, "ray_cpus": 3, "evaluate_after_training": evaluates}
        content = {**content, "services": services}
        (folder / "params.yaml").write_text(yaml.safe_dump(content))

    def run(self, *command: str, timeout: float = 400, **variables: str) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment(
                PREFECT_HOME=str(self.folder / "prefect of the user"), **self.variables, **variables
            ),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def login(self) -> tuple[str, str]:
        """User and password of the project's Prefect and MLflow."""
        user, _, password = (self.folder / "outputs/services/login").read_text().partition(":")
        return user, password

    def ask_prefect(self, path: str, **query: object) -> Any:
        """The answer of the project's Prefect to a query with the login."""
        address = f"http://127.0.0.1:{self.ports['prefect']}/api/{path}"
        answer = httpx.post(address, json=query, auth=self.login(), trust_env=False, timeout=30)
        return answer.raise_for_status().json()

    def mlflow(self) -> dict[str, str]:
        """The environment variables with which a program uses the project's MLflow server."""
        names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
        address = f"http://127.0.0.1:{self.ports['mlflow']}"
        return {"MLFLOW_TRACKING_URI": address, **dict(zip(names, self.login(), strict=True))}

    def fractal(self, *arguments: str) -> str:
        """Run a `fractal` command with a proxy that does not answer, as all servers are local."""
        command = [sys.executable, "-m", "fractal_model", *arguments]
        return self.run(*command, HTTP_PROXY="http://127.0.0.1:9")

    def prefect(self, *arguments: str) -> str:
        return self.run(sys.executable, "-m", "prefect", *arguments)


@contextmanager
def live_project(
    folder: Path,
    content: dict,
    database: str = "sqlite",
    *,
    evaluates: bool = False,
    **variables: str,
) -> Iterator[Project]:
    """Yield a project whose servers run; `database` is `sqlite` or `postgresql`. For `evaluates`
    and `variables` see `Project`."""
    with postgres() if database == "postgresql" else nullcontext({}) as of_database:
        project = Project(folder, content, evaluates=evaluates, **variables, **of_database)
        try:
            project.start_output = project.fractal("services", "up")
            if database == "postgresql":  # commands cannot find this store by themselves
                project.variables |= project.mlflow()
            yield project
        finally:
            project.fractal("services", "down")
