"""All evaluated models and the published numbers in one table.

Decided here: a row is comparable if its protocol equals that of the data set's newest full
evaluation. On a data set with published numbers, that evaluation must follow the published
protocol. Sampling settings and seeds may differ, because they belong to a model; the table has
columns for the settings. If only the DINOv2 weights differ, the row is comparable but its FD-DINOv2
is left out. Rows that are not comparable are in the table too, marked, with the reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from fractal_model.common.errors import FractalError
from fractal_model.common.safe_text import safe_text
from fractal_model.config.data import IMAGENET_SIDES
from fractal_model.evaluation.protocol import PUBLISHED_SAMPLES, Protocol
from fractal_model.metrics.names import (
    FD_DINOV2,
    SPEED,
    metric_order,
)
from fractal_model.reporting.published_results import CLASSES, PUBLISHED, PublishedResult

IDENTITY = ("dataset", "model", "published")
SETTINGS = ("guidance", "logit_scale", "iterations", "samples")
VERDICT = ("comparable", "reason", "run")
KNOWN = (*IDENTITY, *SETTINGS, *VERDICT)
"""Columns that hold no metrics."""
OWN_SETTINGS = {"sampling", "guidance_schedule", "seed"}
"""Fields of `Protocol.images` that may differ between comparable rows."""


@dataclass(frozen=True)
class Row:
    """One evaluated version of a model."""

    dataset: str
    model: str
    values: dict[str, float] = field(default_factory=dict)
    protocol: Protocol | None = None
    """Protocol of the evaluation; None if it was not recorded."""
    run: str = ""
    """Id of the MLflow run."""


def results_table(rows: Sequence[Row]) -> pd.DataFrame:
    """Return a frame with the published models and with `rows`, evaluated models from new to old.

    Columns: those of IDENTITY and SETTINGS, the metrics (NaN: not measured), those of VERDICT. The
    rows are sorted by data set; published rows come first, comparable ones before the others.
    """
    records = [_published_row(row) for row in PUBLISHED]
    for dataset in {row.dataset for row in rows}:
        evaluated = [row for row in rows if row.dataset == dataset]
        protocols = [row.protocol for row in evaluated if row.protocol is not None]
        full = [p for p in protocols if not incomparable_reason(p, dataset, None)]
        standard = full[0] if full else None
        dinov2 = next((p.dinov2_checksum for p in full if p.dinov2_checksum), None)
        records += [_evaluated_row(row, standard, dinov2) for row in evaluated]
    frame = pd.DataFrame(records)
    metrics = sorted(set(frame.columns) - set(KNOWN), key=metric_order)
    frame = frame.reindex(columns=[*IDENTITY, *SETTINGS, *metrics, *VERDICT])
    order = ["dataset", "published", "comparable"]
    return frame.sort_values(
        order, ascending=[True, False, False], kind="stable", ignore_index=True
    )


def rows_of_dataset(frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Return the rows of a data set, without empty metric columns. FractalError: it has no rows."""
    datasets = sorted(frame["dataset"].unique())
    if dataset not in datasets:
        raise FractalError(
            f"there are no results of the data set {dataset!r}, only of {', '.join(datasets)}: "
            f"evaluate a model on {dataset!r}, or ask for all data sets"
        )
    rows = frame[frame["dataset"] == dataset].reset_index(drop=True)
    empty = [name for name in rows.columns if name not in KNOWN and rows[name].isna().all()]
    return rows.drop(columns=empty)


def incomparable_reason(protocol: Protocol | None, dataset: str, standard: Protocol | None) -> str:
    """Return why numbers of a protocol cannot be compared with others of the data set; "" if they
    can. `standard` is the protocol of the data set's newest full evaluation."""
    if protocol is None:
        return "its protocol is not recorded"
    resolution = IMAGENET_SIDES.get(dataset)
    if resolution and (difference := _difference_to_published(protocol, resolution)):
        return difference
    if protocol.is_preview:
        return (
            f"preview of {protocol.samples:,} samples, the full set has {protocol.full_samples:,}"
        )
    if standard is None:
        return ""
    ours, theirs = _deciding_settings(protocol), _deciding_settings(standard)
    # Images that came as files lack some settings, such as likelihood_passes. Those are skipped.
    unequal = [name for name in ours if name in theirs and ours[name] != theirs[name]]
    return f"not the {', '.join(unequal)} of the newest evaluation" if unequal else ""


def _deciding_settings(protocol: Protocol) -> dict[str, object]:
    """Return the settings of a protocol that must be equal in all comparable rows."""
    images = {} if protocol.images is None else protocol.images.model_dump(exclude=OWN_SETTINGS)
    return protocol.model_dump(exclude={"images", "dinov2_checksum"}) | images


def _difference_to_published(protocol: Protocol, resolution: int) -> str:
    for unit, value, published in (
        ("samples", protocol.samples, PUBLISHED_SAMPLES),
        ("classes", protocol.classes, CLASSES),
        ("px", protocol.resolution, resolution),
    ):
        if value != published:
            return f"{value:,} {unit}, published {published:,}"
    if not protocol.reference_source.startswith("ADM"):
        return f"against {protocol.reference_source}, published: against ADM's statistics"
    return ""


def _published_row(row: PublishedResult) -> dict[str, object]:
    fractal = row.guidance is not None
    return {
        "dataset": row.dataset,
        "model": row.model,
        "published": True,
        "guidance": row.guidance,
        "logit_scale": row.logit_scale,
        "iterations": ", ".join(map(str, row.iterations)) or ("all" if fractal else ""),
        "samples": PUBLISHED_SAMPLES if fractal else None,
        **row.values,
        "comparable": True,
        "reason": "",
        "run": "",
    }


def _evaluated_row(row: Row, standard: Protocol | None, dinov2: str | None) -> dict[str, object]:
    """Return the results table's row for an evaluated version. If its DINOv2 weights have another
    checksum than `dinov2`, its FD-DINOv2 is left out."""
    protocol = row.protocol
    reason = incomparable_reason(protocol, row.dataset, standard)
    source = protocol and protocol.images
    sampling = source and source.sampling
    values = {name: value for name, value in row.values.items() if name not in SPEED}
    if protocol is not None and protocol.dinov2_checksum != dinov2:
        values = {n: value for n, value in values.items() if not n.startswith(FD_DINOV2)}
    return {
        "dataset": row.dataset,
        "model": safe_text(row.model),
        "published": False,
        "guidance": sampling and sampling.guidance,
        "logit_scale": sampling and sampling.logit_scale,
        "iterations": ", ".join(map(str, sampling.iterations)) if sampling else "",
        "samples": protocol and protocol.samples,
        **values,
        "comparable": not reason,
        "reason": reason,
        "run": row.run,
    }
