"""A wheel of the working tree, and environments in which it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

from tests.support import REPOSITORY

PARTS = (
    "fractal_model",
    "flows",
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "params.yaml",
    "dvc.yaml",
    ".gitignore",
    ".dvcignore",
)
"""Files and folders that a build reads."""
NOT_IN_THE_CORE = (
    "ray",
    "mlflow",
    "prefect",
    "dvc",
    "datasets",
    "pyarrow",
    "pandas",
    "torchvision",
    "timm",
    "flows",
)
"""Modules that only extras bring, and a name that the wheel must not take."""


def pip(*words: str | Path) -> None:
    command = [sys.executable, "-m", "pip", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the sources in `folder`, because a build leaves files there,
    and return its path. It needs no network."""
    source = folder / "source"
    source.mkdir(parents=True)
    for name in PARTS:
        if (REPOSITORY / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / name, source / name, ignore=ignored)
        else:
            shutil.copy(REPOSITORY / name, source)
    pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("*.whl")
    return wheel


def link_core(folder: Path, requirements: list[str]) -> Path:
    """Fill `folder` with links to the installed packages that `requirements` need, and to no
    others. With `python -S` it takes the place of the packages of this environment."""
    folder.mkdir()
    done: set[str] = set()
    todo = [Requirement(text) for text in requirements]
    while todo:
        requirement = todo.pop()
        key = f"{requirement.name.lower()}[{','.join(sorted(requirement.extras))}]"
        if key in done:
            continue
        done.add(key)
        package = distribution(requirement.name)
        for text in package.requires or []:
            inner = Requirement(text)
            if inner.marker is None or any(
                inner.marker.evaluate({"extra": extra}) for extra in {"", *requirement.extras}
            ):
                inner.marker = None
                todo.append(inner)
        for file in package.files or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).is_symlink():
                (folder / top).symlink_to(Path(str(package.locate_file(top))))
    return folder


def run_python(
    *words: str | Path, cwd: Path, path: tuple[Path, ...], isolated: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run Python in the folder `cwd` with the folders `path` in front of its modules. `isolated`:
    without the packages of this environment."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    modules = os.pathsep.join(map(str, path))
    environment = os.environ | {"PYTHONPATH": modules, "PATH": programs}
    command = [sys.executable, *(["-S"] if isolated else []), *map(str, words)]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
