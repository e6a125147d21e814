"""A project folder for a test, in which commands run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Project:
    """A folder with a params.yaml, in which a test runs commands."""

    folder: Path

    @property
    def params(self) -> Path:
        return self.folder / "params.yaml"

    @property
    def outputs(self) -> Path:
        return self.folder / "outputs"

    def environment(self) -> dict[str, str]:
        other = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_"))}
        return {**other, "PREFECT_HOME": str(self.folder / "prefect")}

    def command(self, module: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", module, *arguments, "--params", str(self.params)]

    def run(self, main: Callable[[], None], *arguments: str) -> None:
        """Call a command's main function in this process with these arguments."""
        argv, sys.argv = sys.argv, ["command", *arguments, "--params", str(self.params)]
        try:
            main()
        except SystemExit as stopped:
            if stopped.code:
                raise
        finally:
            sys.argv = argv


def make_project(folder: Path, content: dict) -> Project:
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    return Project(folder)
