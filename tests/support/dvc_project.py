"""Runs DVC in a project of a test, and makes such a project of this checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.support import REPOSITORY

PERSON = {
    f"GIT_{role}_{key}": "x@y" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")
}


def run(project: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in `project`, without the variables that name a user's servers."""
    other = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_"))}
    environment = {
        **other,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "DVC_NO_ANALYTICS": "1",
        **PERSON,
        **variables,
    }
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)


def dvc(project: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return run(project, sys.executable, "-m", "dvc", *words, **variables)


def make_checkout(folder: Path, content: dict) -> Path:
    """A git repository with the code, the stages and the settings `content`, all committed."""
    for name in (
        "flows",
        "fractal_model",
        ".dvc/.gitignore",
        ".dvc/config",
        ".dvcignore",
        ".gitignore",
        "dvc.yaml",
    ):
        source, target = REPOSITORY / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, target)
    (folder / "data").mkdir()
    (folder / "data/registered.yaml").write_text("registered: {}\n")
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    commit(folder, "init")
    return folder


def commit(folder: Path, message: str) -> None:
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "-m", message]):
        done = run(folder, "git", *words)
        assert done.returncode == 0, done.stderr
