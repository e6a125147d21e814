"""Where the parts are that a checkout keeps beside the package and an installed wheel keeps in it.

Decided here: in a checkout, also in one that is installed in editable form, the flows are the
package `flows`. A wheel has them as `fractal_model.flows`, because a top-level package `flows`
could collide with another one. The flows import each other relatively and work under both names.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType

_PACKAGE = Path(__file__).parents[1]
IS_WHEEL = (_PACKAGE / "flows").is_dir()
"""True if the package is an installed wheel, False if it is in a checkout."""
FLOWS = "fractal_model.flows" if IS_WHEEL else "flows"
"""Name of the package with the flows."""


def import_flow(name: str) -> ModuleType:
    """Import a module of the flows, such as `train`, which has the flow and its command."""
    return import_module(f"{FLOWS}.{name}")


def shipped_file(name: str) -> Path:
    """Path of a file that stands at the top of the repository and is part of the wheel, such as
    params.yaml."""
    return (_PACKAGE / "project" if IS_WHEEL else _PACKAGE.parent) / name
