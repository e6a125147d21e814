"""Write a project folder: the settings and data stages to work with where there is no checkout.

    params.yaml, dvc.yaml        copies of those of this version
    params.schema.json           by which an editor checks params.yaml
    .gitignore, .dvcignore       keep images and results out of git
    data/registered.yaml         no data set yet; `fractal data register` adds them
    .dvc/                        if DVC is installed

Decided here: the stages call the installed package, so they do not depend on its source files, as
those of a checkout do. A file that exists is never overwritten.
"""

import logging
import os
from importlib.util import find_spec
from pathlib import Path

import yaml

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.files import require_writable
from fractal_model.common.installation import shipped_file
from fractal_model.config.json_schema import SCHEMA_FILE, schema_text

_CODE = ("fractal_model/", "flows/")
_STAGES = "dvc.yaml"
_COPIED = ("params.yaml", ".gitignore", ".dvcignore")
_REGISTERED = "data/registered.yaml"
_NOTHING_REGISTERED = "# Data sets that `dvc repro` builds beside digits.\nregistered: {}\n"


def write_project(folder: Path) -> bool:
    """Write the files of a project into `folder`, which is made if it is missing. Return True if
    DVC is installed and now ready in the folder. FractalError: one of the files exists, the folder
    cannot be written to, or git ignores it."""
    files = {name: shipped_file(name).read_text() for name in _COPIED}
    files[_STAGES] = stages_of_project(shipped_file(_STAGES).read_text())
    files[_REGISTERED] = _NOTHING_REGISTERED
    files[SCHEMA_FILE] = schema_text()
    if existing := [name for name in files if os.path.lexists(folder / name)]:
        raise FractalError(
            f"{folder} has {existing[0]} already, which is not overwritten: choose another folder, "
            f"or remove the file first"
        )
    require_writable((folder / _REGISTERED).parent)
    has_dvc = _initialise_dvc(folder.resolve())
    for name, text in files.items():
        (folder / name).write_text(text)
    return has_dvc


def stages_of_project(text: str) -> str:
    """Return the text of dvc.yaml without the source files that a checkout's stages depend on."""
    content = yaml.safe_load(text)
    for stage in content["stages"].values():
        work = stage.get("do", stage)
        deps = [each for each in work.pop("deps", []) if not str(each).startswith(_CODE)]
        if deps:
            work["deps"] = deps
    head = "# Stages of `dvc repro`. After an update of fractal-model: `dvc repro --force`.\n"
    return head + yaml.safe_dump(content, sort_keys=False, width=1000)


def _initialise_dvc(folder: Path) -> bool:
    """Make `folder` a DVC repository, unless it is one; in a git repository DVC uses git. Return
    False if DVC is not installed. FractalError: git ignores the folder."""
    if find_spec("dvc") is None:
        return False
    if not (folder / ".dvc").exists():
        from dvc.exceptions import InitError
        from dvc.repo import Repo

        logging.getLogger("dvc").setLevel(logging.WARNING)
        has_git = [(place / ".git").exists() for place in (folder, *folder.parents)]
        try:
            repository = Repo.init(
                str(folder), no_scm=not any(has_git), subdir=any(has_git) and not has_git[0]
            )
        except InitError as error:
            raise FractalError(
                f"DVC refuses {folder} ({one_line(error)}): choose a folder that git does not "
                f"ignore"
            ) from error
        with repository, repository.config.edit("repo") as settings:
            settings["core"]["analytics"] = False
    return True
