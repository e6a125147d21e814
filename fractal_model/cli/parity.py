"""`fractal parity`: compare our model with numbers of the published implementation."""

from pathlib import Path
from typing import Annotated

import typer

from fractal_model.common.console import say, show
from fractal_model.common.errors import FractalError
from fractal_model.common.tables import FittedTable


def parity(
    folder: Annotated[Path, typer.Argument(help="A folder with numbers, as tests/parity/mar4.")],
) -> list[dict[str, object]]:
    """Compare our model with numbers measured on the published implementation.

    Prints the error and tolerance of each quantity. The exit code is 1 if an error is too large.
    """
    from rich.text import Text

    from fractal_model.checkpoints.parity import compare

    table = FittedTable(folder.name, ["quantity", "error", "tolerance", ""], texts=(0, 3))
    comparisons = list(compare(folder))
    for c in comparisons:
        verdict = "ok" if c.is_within_tolerance else Text("missed", style="red")
        table.add_row(c.quantity, f"{c.error:.2e}", f"{c.tolerance:.0e}", verdict)
    show(table)
    missed = [c.quantity for c in comparisons if not c.is_within_tolerance]
    if missed:
        raise FractalError(
            f"{len(missed)} of {len(comparisons)} quantities of {folder} differ from the published "
            f"model's by more than the tolerance, for example {missed[0]}: find and undo the "
            f"change in the code that causes this"
        )
    say(f"{folder.name}: all {len(comparisons)} quantities within tolerance")
    return [
        {"quantity": c.quantity, "error": c.error, "tolerance": c.tolerance} for c in comparisons
    ]
