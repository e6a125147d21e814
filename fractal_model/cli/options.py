"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer


def group(help: str) -> typer.Typer:
    """An app of commands; alone it shows its help."""
    return typer.Typer(help=help, no_args_is_help=True, add_completion=False)


def path(text: str | Path) -> Path:
    """What an option names. An empty text, as of a variable that is not set, would be the folder
    that the command runs in."""
    if not str(text).strip():
        raise typer.BadParameter("it is empty: give a name")
    return Path(text)


def given(text: str) -> str:
    """A text that says something."""
    if not text.strip():
        raise typer.BadParameter("it is empty")
    return text


ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        parser=given,
        metavar="TEXT",
        help="A checkpoint or exported folder, or models:/fractal-digits@champion; with #ema at "
        "the end: the moving average of its weights.",
    ),
]
ParamsOption = Annotated[Path, typer.Option("--params", help="The settings file.")]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        help="Split the work over this many Ray workers, on the cluster in RAY_ADDRESS or on this "
        "machine; 0: all that there is room for. Without it, it runs in this process. The result "
        "is the same.",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON object on standard output, nothing else.")
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size", help="At most so many images at a time; by default what fits the memory."
    ),
]
