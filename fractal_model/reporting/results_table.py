"""All evaluated models and the published numbers in one table.

Decided here: only like is compared with like: what was measured as the data set's newest full
evaluation was; on a data set that numbers are published of, as the newest that follows the
published protocol. Guidance and the other settings of the sampler are a model's own and may differ;
they have columns; so may seeds. Where only the weights of DINOv2 are others, only its distance is
left out. Every other row stays, marked, with the reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from fractal_model.common.errors import FractalError
from fractal_model.common.safe_text import safe_text
from fractal_model.config.data import IMAGENET_SIDES
from fractal_model.evaluation.protocol import PUBLISHED_SAMPLES, Protocol
from fractal_model.metrics.names import (
    CONDITIONAL_NLL,
    FD_DINOV2,
    FID,
    INCEPTION_SCORE,
    KID,
    NLL,
    PRECISION,
    RECALL,
    SPEED,
    STANDARD_ERROR,
)
from fractal_model.reporting.published_results import CLASSES, PUBLISHED, PublishedResult

IDENTITY = ("dataset", "model", "published")
SETTINGS = ("guidance", "logit_scale", "iterations", "samples")
VERDICT = ("comparable", "reason", "run")
KNOWN = (*IDENTITY, *SETTINGS, *VERDICT)
"""Columns that are no metrics."""
OWN_SETTINGS = {"sampling", "seed"}
"""Of `Protocol.images`: what may differ between rows that compare."""
FIRST = (NLL, CONDITIONAL_NLL, FID, INCEPTION_SCORE, PRECISION, RECALL, KID)
"""Metrics of the columns from the left; others follow by name, previews after them."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    dataset: str
    model: str
    values: dict[str, float] = field(default_factory=dict)
    protocol: Protocol | None = None
    """Of an evaluation that keeps its record."""
    run: str = ""
    """MLflow's id."""


def results_table(rows: Sequence[Row]) -> pd.DataFrame:
    """Rows newest first to a frame: identity, settings, a column a metric (NaN: not measured),
    comparable, reason, run. By data set; published rows first; what compares before the rest."""
    records = [_published(row) for row in PUBLISHED]
    for dataset in {row.dataset for row in rows}:
        ours = [row for row in rows if row.dataset == dataset]
        protocols = [row.protocol for row in ours if row.protocol is not None]
        full = [one for one in protocols if not why_unlike(one, dataset, None)]
        standard = full[0] if full else None
        dinov2 = next((one.dinov2_checksum for one in full if one.dinov2_checksum), None)
        records += [_ours(row, standard, dinov2) for row in ours]
    frame = pd.DataFrame(records)
    metrics = sorted(set(frame.columns) - set(KNOWN), key=_place)
    frame = frame.reindex(columns=[*IDENTITY, *SETTINGS, *metrics, *VERDICT])
    order = ["dataset", "published", "comparable"]
    return frame.sort_values(
        order, ascending=[True, False, False], kind="stable", ignore_index=True
    )


def of_dataset(frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """The rows of one data set, with the metrics that it has. FractalError: there are none."""
    known = sorted(frame["dataset"].unique())
    if dataset not in known:
        raise FractalError(
            f"no results of the data set {dataset!r}: there are some of {', '.join(known)}; "
            f"evaluate a model on it, or ask for all data sets"
        )
    rows = frame[frame["dataset"] == dataset].reset_index(drop=True)
    empty = [name for name in rows.columns if name not in KNOWN and rows[name].isna().all()]
    return rows.drop(columns=empty)


def why_unlike(protocol: Protocol | None, dataset: str, standard: Protocol | None) -> str:
    """Why numbers of this protocol do not stand beside the others of the data set; "" where they
    do. `standard` is that of the data set's newest full evaluation, like the published one where
    there is one."""
    if protocol is None:
        return "no record of its protocol is kept"
    resolution = IMAGENET_SIDES.get(dataset)
    if resolution and (why := _why_unlike_published(protocol, resolution)):
        return why
    if protocol.is_preview:
        return (
            f"preview of {protocol.samples:,} samples, the full set has {protocol.full_samples:,}"
        )
    if standard is None:
        return ""
    mine, theirs = _decisive(protocol), _decisive(standard)
    # What images that came as files do not have, such as likelihood_passes, decides none of theirs.
    unlike = [name for name in mine if name in theirs and mine[name] != theirs[name]]
    return f"not the {', '.join(unlike)} of the newest evaluation" if unlike else ""


def _decisive(protocol: Protocol) -> dict[str, object]:
    """What rows that compare share."""
    images = {} if protocol.images is None else protocol.images.model_dump(exclude=OWN_SETTINGS)
    return protocol.model_dump(exclude={"images", "dinov2_checksum"}) | images


def _why_unlike_published(protocol: Protocol, resolution: int) -> str:
    for what, found, wanted in (
        ("samples", protocol.samples, PUBLISHED_SAMPLES),
        ("classes", protocol.classes, CLASSES),
        ("px", protocol.resolution, resolution),
    ):
        if found != wanted:
            return f"{found:,} {what}, published {wanted:,}"
    if not protocol.reference_source.startswith("ADM"):
        return f"against {protocol.reference_source}, published: against ADM's statistics"
    return ""


def _published(row: PublishedResult) -> dict[str, object]:
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


def _ours(row: Row, standard: Protocol | None, dinov2: str | None) -> dict[str, object]:
    """`dinov2`: the checksum of the weights that distances of DINOv2 compare under."""
    protocol = row.protocol
    reason = why_unlike(protocol, row.dataset, standard)
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


def _place(metric: str) -> tuple[int, str]:
    """Known metrics first, each before its standard error."""
    base = metric.removesuffix(STANDARD_ERROR)
    return (FIRST.index(base) if base in FIRST else len(FIRST), metric)
