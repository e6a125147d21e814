"""`fractal study`: compare variants of a recipe over several seeds, and write table and page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fractal_model.cli.options import ParamsOption, parse_text, path_option
from fractal_model.common.console import say, show
from fractal_model.common.errors import FractalError
from fractal_model.common.tables import FittedTable
from fractal_model.config.params_source import DEFAULT_SOURCE

if TYPE_CHECKING:
    from fractal_model.studies.comparison import Estimate, VariantComparison


def study(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            parser=parse_text,
            help="A study of the folder docs/studies, or the path of its YAML file.",
        ),
    ],
    jobs: Annotated[
        int, typer.Option(min=1, max=1000, help="Number of trials at a time, each in a process.")
    ] = 1,
    out: Annotated[
        Path | None,
        path_option("The folder for the table and the page. Default: the folder of the file."),
    ] = None,
    params: ParamsOption = DEFAULT_SOURCE,
) -> list[dict[str, object]]:
    """Compare variants of a recipe over several seeds, and write the table and the page.

    Each trial (a variant with one seed) is a training as `fractal train` runs it, but nothing is
    registered. Trials that NAME.csv has already are not run again, so a stopped study continues.
    """
    from fractal_model.studies.run_study import run_study
    from fractal_model.studies.study_file import find_study, read_study

    file = find_study(name, params.file.absolute().parent)
    if params.overrides and out is None:
        raise FractalError(
            "the page of a study has the settings of its file: with --set give another folder",
            setting="out",
        )
    folder = file.parent if out is None else out
    comparison = run_study(read_study(file), file.stem, params, folder, jobs=jobs)
    for variant in comparison:
        show(_table(variant))
    say(f"page: {folder / file.stem}.md")
    return [variant.model_dump(mode="json") for variant in comparison]


def _table(variant: VariantComparison) -> FittedTable:
    title = f"{variant.variant}, {variant.seeds} seeds, {variant.minutes.mean:.1f} minutes each"
    table = FittedTable(title, ["metric", "mean", "±", "to base", "± of it", ""], texts=(0, 5))
    for name, metric in variant.metrics.items():
        cells = (*_cells(metric.value), *_cells(metric.difference))
        table.add_row(name, *cells, metric.verdict)
    return table


def _cells(estimate: Estimate | None) -> tuple[str, str]:
    if estimate is None:
        return "", ""
    return f"{estimate.mean:.4f}", "" if estimate.error is None else f"{estimate.error:.4f}"
