"""The table and the figures of a sweep."""

import pandas as pd
from matplotlib.figure import Figure

from fractal_model.config.serving import ServingConfig
from fractal_model.metrics.names import FID
from fractal_model.reporting.figures import guidance_heat_map, guidance_sweep
from fractal_model.reporting.published_results import published_optimum

HEAT_MAP, CURVES = "fid-heat-map.png", "fid-guidance.png"
COLUMNS = [
    "weights",
    "guidance",
    "guidance_interval",
    "guidance_schedule",
    "logit_scale",
    "iterations",
    "metric",
    FID,
]
"""Columns of a sweep's table that are printed."""


def sweep_row(setting: ServingConfig, metric: str, fid: float) -> dict[str, object]:
    """Return a setting's row of the table. `metric`: name of the FID metric, such as fid_5k; `fid`:
    its value."""
    settings = setting.sampling
    # Settings that a dump leaves out at their defaults
    schedule = {
        "guidance_interval": list(settings.guidance_interval),
        "guidance_schedule": settings.guidance_schedule,
    }
    sampling = settings.model_dump(mode="json") | schedule
    return {"weights": setting.weights, **sampling, "metric": metric, FID: fid}


def sweep_figures(
    table: pd.DataFrame, best: ServingConfig, *, size: str, first: int
) -> dict[str, Figure]:
    """Return two figures by file name: FID against guidance and logit scale as heat map and curves.

    They show the `first` rows of the table: the settings of the sweep's first round, all measured
    with the same number of images. Settings with other weights, iterations, intervals or schedules
    than the best setting are left out.
    """
    rows = table.iloc[:first]
    rows = rows[rows["weights"] == best.weights]
    rows = rows[rows["guidance_schedule"] == best.sampling.guidance_schedule]
    for name in ("iterations", "guidance_interval"):
        rows = rows[rows[name].map(tuple) == getattr(best.sampling, name)]
    cells = {(row.guidance, row.logit_scale): row.fid for row in rows.itertuples()}
    lines: dict[float, list[tuple[float, float]]] = {}
    for (guidance, scale), fid in cells.items():
        lines.setdefault(scale, []).append((guidance, fid))
    metric, published = str(table["metric"].iloc[0]), published_optimum(size)
    best_cell = (best.sampling.guidance, best.sampling.logit_scale)
    return {
        HEAT_MAP: guidance_heat_map(cells, metric=metric, best=best_cell, published=published),
        CURVES: guidance_sweep(lines, published=published, metric=metric),
    }
