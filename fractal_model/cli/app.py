"""The command line: `fractal …`, also `python -m fractal_model …`."""

from __future__ import annotations

import typer

from fractal_model.cli import data, edit, import_export, models, services
from fractal_model.cli.animate import animate
from fractal_model.cli.benchmark import benchmark
from fractal_model.cli.evaluate import evaluate
from fractal_model.cli.likelihood import likelihood
from fractal_model.cli.parity import parity
from fractal_model.cli.plan import plan
from fractal_model.cli.results import results
from fractal_model.cli.sample import sample
from fractal_model.cli.ui import ui
from fractal_model.common.console import errors_on_one_line, run

app = typer.Typer(
    help="Train, measure and serve fractal generative models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(data.app, name="data")
app.add_typer(models.app, name="models")
app.add_typer(services.app, name="services")
app.command("evaluate")(evaluate)
app.command("likelihood")(likelihood)
app.command("sample")(sample)
app.command("edit")(edit.edit)
app.command("animate")(animate)
app.command("plan")(plan)
app.command("results")(results)
app.command("benchmark")(benchmark)
app.command()(parity)
app.command()(ui)


app.command("import")(import_export.import_checkpoint)
app.command("export")(import_export.export_model)


def main() -> None:
    with errors_on_one_line():
        run(app)
