"""The reference curves that the package contains: one CSV file for each size that has one.

The first line of a file is a comment with a JSON object, the `Origin`. The other lines are a table
with the column `epoch`, and for each metric its mean over the seeds and its spread. A cell is
empty if the metric was not measured at that epoch, and all spreads are if there is one seed.
"""

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from importlib import resources

import numpy as np

from fractal_model.common.strict import StrictModel
from fractal_model.metrics.names import NLL
from fractal_model.reporting.reference_curve import (
    LOSS,
    CurvePoint,
    Points,
    ReferenceCurve,
    epoch_means,
)

COLUMNS = {metric: f"{metric}_spread" for metric in (LOSS, NLL)}
"""Column of each metric's spread."""
_NEIGHBOURS = 2
"""Number of points before and after a point whose variances are averaged with its own, because the
variance of three values is a bad estimate."""
_COMMENT = "# "


class Origin(StrictModel):
    """The trainings from which a reference curve was made. They differ in their seed only."""

    size: str
    fingerprint: str
    """Fingerprint of the training with the first seed."""
    dataset_checksum: str
    seeds: tuple[int, ...]
    settings: dict[str, str]
    """Architecture and recipe, without the seed: texts by dotted name."""


def curve_file_name(size: str) -> str:
    return f"{size}.csv"


def read_shipped_curve(size: str) -> tuple[Origin, ReferenceCurve] | None:
    """Return the curve that the package contains for a size, and its origin; None if it has
    none."""
    folder = resources.files("fractal_model.reporting") / "reference_curves"
    file = folder / curve_file_name(size)
    return parse_curve(file.read_text(encoding="utf-8")) if file.is_file() else None


def parse_curve(text: str) -> tuple[Origin, ReferenceCurve]:
    """Read the text of a CSV file. ValueError, KeyError: it is damaged."""
    comment, _, table = text.partition("\n")
    origin = Origin.model_validate(json.loads(comment.removeprefix(_COMMENT)))
    rows = list(csv.DictReader(io.StringIO(table)))
    curves = {
        metric: tuple(
            CurvePoint(
                epoch=float(row["epoch"]),
                value=float(row[metric]),
                spread=float(row[column]) if row[column] else None,
            )
            for row in rows
            if row[metric]
        )
        for metric, column in COLUMNS.items()
        if any(row[metric] for row in rows)
    }
    return origin, ReferenceCurve(name="the reference curve", curves=curves)


def format_curve(origin: Origin, runs: Sequence[Mapping[str, Points]]) -> str:
    """Return the text of a CSV file made of the curves by metric of each of the `runs`. An epoch
    that a run lacks is left out."""
    columns = {metric: _summarise([run[metric] for run in runs]) for metric in COLUMNS}
    file = io.StringIO()
    file.write(f"{_COMMENT}{origin.model_dump_json()}\n")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["epoch", *(name for pair in COLUMNS.items() for name in pair)])
    for epoch in sorted({epoch for cells in columns.values() for epoch in cells}):
        cells = [columns[metric].get(epoch, ("", "")) for metric in COLUMNS]
        writer.writerow([f"{epoch:g}", *(text for pair in cells for text in pair)])
    return file.getvalue()


def _summarise(curves: Sequence[Points]) -> dict[float, tuple[str, str]]:
    """Return mean and spread as texts, by epoch."""
    by_epoch = [dict(epoch_means(curve)) for curve in curves]
    epochs = sorted(set.intersection(*(set(values) for values in by_epoch)))
    groups = [[values[epoch] for values in by_epoch] for epoch in epochs]
    if len(curves) == 1:
        return {epoch: (f"{value:.5f}", "") for epoch, (value,) in zip(epochs, groups, strict=True)}
    variances = [statistics.variance(group) for group in groups]
    summary = {}
    for number, (epoch, group) in enumerate(zip(epochs, groups, strict=True)):
        near = variances[max(0, number - _NEIGHBOURS) : number + _NEIGHBOURS + 1]
        summary[epoch] = (f"{statistics.fmean(group):.5f}", f"{np.mean(near) ** 0.5:.5f}")
    return summary
