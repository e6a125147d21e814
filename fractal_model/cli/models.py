"""`fractal models …`: list the registered models, and choose the champion by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from fractal_model.cli.options import ParamsOption, group, parse_text
from fractal_model.common.console import say, show
from fractal_model.common.tables import FittedTable
from fractal_model.config.params_source import DEFAULT_SOURCE

if TYPE_CHECKING:
    from fractal_model.tracking.registry_view import RegisteredModel

app = group("List the registered models and choose the champion by hand.")
SizeArgument = Annotated[str, typer.Argument(help="A registered size, such as digits.")]
BecauseOption = Annotated[
    str, typer.Option("--because", parser=parse_text, metavar="TEXT", help="Reason to record.")
]


@app.command("list")
def list_models(
    params: ParamsOption = DEFAULT_SOURCE,
) -> list[dict[str, object]]:
    """List all versions of all sizes: aliases, key metrics, and the decision about each version."""
    from fractal_model.tracking.registry_view import registered_models

    _connect(params)
    models = registered_models()
    if not models:
        say("no model is registered: train one with `fractal train --size digits`")
    for model in models:
        _print(model)
    return [model.model_dump() for model in models]


@app.command()
def promote(
    size: SizeArgument,
    version: Annotated[int, typer.Argument(help="Number of the version.")],
    because: BecauseOption,
    params: ParamsOption = DEFAULT_SOURCE,
) -> dict[str, object]:
    """Make a version the champion, whatever its metrics are.

    Later evaluations do not undo this: only a person can promote the replaced version again.
    """
    from fractal_model.tracking import champions

    _connect(params)
    replaced = champions.promote_by_hand(size, str(version), because)
    before = "there was none before" if replaced is None else f"it was version {replaced} before"
    say(f"fractal-{size} version {version} is the champion now, {before}")
    return {"size": size, "champion": str(version), "before": replaced}


@app.command()
def rollback(
    size: SizeArgument,
    because: BecauseOption = "no reason given",
    params: ParamsOption = DEFAULT_SOURCE,
) -> dict[str, object]:
    """Make the previous champion the champion again.

    Each further call goes back by one more champion. Later evaluations do not undo a rollback: only
    a person can promote the replaced version again.
    """
    from fractal_model.tracking import champions

    _connect(params)
    former, champion = champions.rollback(size, because)
    say(f"fractal-{size} version {champion} is the champion again, version {former} no longer")
    return {"size": size, "champion": champion, "before": former}


def _connect(params: ParamsOption) -> None:
    from fractal_model.tracking import store

    store.connect(params.load().paths.outputs)


def _print(model: RegisteredModel) -> None:
    headings = ["version", "aliases", "registered", "bits/dim", "FID", "decision"]
    table = FittedTable(f"fractal-{model.size}", headings, texts=(0, 1, 2, 5))
    for version in model.versions:
        table.add_row(
            version.version,
            ", ".join(version.aliases),
            f"{datetime.fromtimestamp(version.registered_at, UTC):%Y-%m-%d %H:%M}",
            version.format_metric("nll_bits_per_dim", 4),
            version.format_metric("fid", 2),
            version.outcome,
        )
    show(table)
    for change in model.champions:
        reason = f"({change.how}: {change.because})"
        show(f"champion from {change.when}: version {change.version} {reason}")
