"""`fractal results`: show all evaluated models beside the published numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from fractal_model.cli.options import ParamsOption, path_option
from fractal_model.common.console import say, show
from fractal_model.common.files import atomic_file, require_writable_file
from fractal_model.common.plurals import count_of
from fractal_model.config.params_source import DEFAULT_SOURCE

if TYPE_CHECKING:
    import pandas as pd


Format = Literal["table", "markdown", "latex", "csv", "json"]


def results(
    dataset: Annotated[str | None, typer.Option(help="Show only this data set.")] = None,
    format: Annotated[
        Format, typer.Option(metavar="FORMAT", help="table, markdown, latex, csv or json.")
    ] = "table",
    output: Annotated[Path | None, path_option("A file to write instead of printing.")] = None,
    params: ParamsOption = DEFAULT_SOURCE,
) -> list[dict[str, object]]:
    """Show the metrics of all evaluated models, beside the published numbers.

    A row is the newest evaluation of a version under one protocol. A row that must not be compared
    with the others has a note with the reason. In CSV and JSON, the numbers have all digits.
    """
    from fractal_model.reporting.results_table import results_table, rows_of_dataset
    from fractal_model.tracking import store
    from fractal_model.tracking.evaluations import evaluations

    if output is not None:
        require_writable_file(output)
    store.connect(params.load().paths.outputs)
    rows = evaluations()
    frame = results_table(rows)
    if dataset is not None:
        frame = rows_of_dataset(frame, dataset)
    if output is not None:
        with atomic_file(output) as partial:
            partial.write_text(_text(frame, format), encoding="utf-8")
        say(f"{count_of(len(frame), 'row')}: {output}")
    elif format == "table":
        from fractal_model.cli.fitted_tables import terminal_tables

        show(*terminal_tables(frame))
        if not rows:
            say("all numbers are published ones: no model is evaluated yet (`fractal evaluate`)")
    else:
        print(_text(frame, format), end="")
    return json.loads(_text(frame, "json"))


def _text(frame: pd.DataFrame, format: Format) -> str:
    from fractal_model.cli.fitted_tables import terminal_tables
    from fractal_model.reporting import results_formats

    if format != "table":
        return getattr(results_formats, format)(frame)
    plain = Console(width=200, color_system=None)
    with plain.capture() as captured:
        for part in terminal_tables(frame):
            plain.print(part)
    return captured.get()
