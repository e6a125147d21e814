"""`fractal init`: write a project folder, to work in without a checkout."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from fractal_model.cli.options import parse_path
from fractal_model.common.console import say
from fractal_model.common.errors import FractalError


def init(
    folder: Annotated[
        Path | None,
        typer.Argument(
            parser=parse_path,
            metavar="DIR",
            help="The folder; made if it is missing. Default: the current one, if it is empty.",
        ),
    ] = None,
) -> None:
    """Write a project folder to work in without a clone: params.yaml, dvc.yaml and data/.

    No file is overwritten. Of an empty folder, hidden entries such as .git do not count.
    """
    from fractal_model.data.project_folder import write_project

    here = Path()
    if folder is None and any(not entry.name.startswith(".") for entry in here.iterdir()):
        raise FractalError(f"{here.resolve()} is not empty: name the folder of the project")
    target = folder or here
    has_dvc = write_project(target)
    say(f"wrote {target}: params.yaml, dvc.yaml, data/; next:")
    enter = [] if folder is None else [f"cd {shlex.quote(str(target))}"]
    add_dvc = [] if has_dvc else ['pip install "fractal-model[all]"', "dvc init --no-scm"]
    for command in [*enter, *add_dvc, "dvc repro"]:
        say(f"  {command}")
