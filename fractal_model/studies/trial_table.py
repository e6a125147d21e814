"""The results of a study's trials, in a CSV file with one row for each trial."""

import csv
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from fractal_model.common.errors import FractalError
from fractal_model.common.files import atomic_file
from fractal_model.common.strict import StrictModel
from fractal_model.common.validation import describe

Curve = tuple[tuple[int, float], ...]
"""Points of a training: the number of images seen and the held-out bits per dimension there."""


class TrialRow(StrictModel):
    """The result of one trial."""

    variant: str
    seed: int
    fingerprint: str
    """First digits of the fingerprint of everything that decides the result."""
    images: int
    """Number of images that training has seen."""
    minutes: float
    """Minutes of all training steps, without set-up, validation and checkpoints."""
    machine: str
    curve: Curve = ()
    """Held-out bits per dimension during the training; empty if it was not validated."""
    metrics: dict[str, float | None]
    """Value of each metric of the study; None if it could not be measured."""


_COLUMNS = [name for name in TrialRow.model_fields if name != "metrics"]


def read_rows(file: Path) -> list[TrialRow]:
    """Read the rows of a file; an empty list if there is no file. FractalError: it is damaged."""
    if not file.is_file():
        return []
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            table = csv.DictReader(stream, strict=True)
            if list(table.fieldnames or ())[: len(_COLUMNS)] != _COLUMNS:
                raise csv.Error(f"its first columns are not {', '.join(_COLUMNS)}")
            return [_as_row(cells) for cells in table]
    except (csv.Error, UnicodeDecodeError, ValidationError) as error:
        reason = describe(error, TrialRow) if isinstance(error, ValidationError) else str(error)
        raise FractalError(
            f"{file} is not a table of trials ({reason}): restore it, or remove it to compute all "
            f"trials again"
        ) from error


def write_rows(file: Path, rows: Sequence[TrialRow]) -> None:
    """Write the rows, which all have the same metrics, to a file."""
    metrics = list(rows[0].metrics) if rows else []
    with (
        atomic_file(file) as partial,
        partial.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*_COLUMNS, *metrics])
        for row in rows:
            curve = " ".join(f"{images}:{bits:.5f}" for images, bits in row.curve)
            own = row.model_dump() | {"minutes": f"{row.minutes:.3f}", "curve": curve}
            values = (row.metrics[name] for name in metrics)
            cells = ["" if value is None else f"{value:.6g}" for value in values]
            writer.writerow([*(own[name] for name in _COLUMNS), *cells])


def _as_row(cells: dict[str, str]) -> TrialRow:
    own = {name: cells[name] for name in _COLUMNS}
    metrics = {name: value or None for name, value in cells.items() if name not in own}
    curve = [point.split(":") for point in (own["curve"] or "").split()]
    return TrialRow.model_validate({**own, "curve": curve, "metrics": metrics})
