"""The table and the figures of a sweep."""

import pandas as pd
from matplotlib.figure import Figure

from fractal_model.config.serving import ServingConfig
from fractal_model.metrics.names import FID
from fractal_model.reporting.figures import guidance_heat_map, guidance_sweep
from fractal_model.reporting.published_results import published_optimum

HEAT_MAP, CURVES = "fid-heat-map.png", "fid-guidance.png"
COLUMNS = ["weights", "guidance", "logit_scale", "iterations", "metric", FID]
"""Columns of a sweep's table that are printed."""


def sweep_row(setting: ServingConfig, metric: str, fid: float) -> dict[str, object]:
    """Return a setting's row of the table. `metric`: name of the FID metric, such as fid_5k; `fid`:
    its value."""
    sampling = setting.sampling.model_dump(mode="json")
    return {"weights": setting.weights, **sampling, "metric": metric, FID: fid}


def sweep_figures(
    table: pd.DataFrame, best: ServingConfig, *, size: str, first: int
) -> dict[str, Figure]:
    """Return two figures by file name: FID against guidance and logit scale as heat map and curves.

    They show the `first` rows of the table: the settings of the sweep's first round, all measured
    with the same number of images. Settings with other weights or iterations than the best setting
    are left out.
    """
    rows = table.iloc[:first]
    rows = rows[rows["weights"] == best.weights]
    rows = rows[rows["iterations"].map(tuple) == best.sampling.iterations]
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
