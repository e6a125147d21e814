"""The command line: `fractal …`, also `python -m fractal_model …`.

Decided here: a command's module is imported when the command is called, and what is slow to import
(torch, MLflow, Ray, pandas) inside the function that needs it, so that help and a mistyped option
are answered at once.
"""

from importlib import import_module
from typing import Any, NamedTuple

import typer
from typer.core import TyperGroup

from fractal_model.common.console import errors_on_one_line, run


class Command(NamedTuple):
    """Where a command is, and its line in the list of commands."""

    place: str
    """Module in `fractal_model.cli` and name in it: a function, or a Typer app of commands."""
    summary: str


COMMANDS = {
    "data": Command("data:app", "Register images, prepare them and describe what was prepared."),
    "models": Command(
        "models:app",
        "The registered models: list them, choose the champion, go back to the one before.",
    ),
    "services": Command("services:app", "Prefect, MLflow and Ray on this machine, on loopback."),
    "parity": Command(
        "parity:parity", "Hold the model against numbers measured on the published implementation."
    ),
    "ui": Command("ui:ui", "Open the MLflow UI on this machine's own store."),
    "evaluate": Command(
        "evaluate:evaluate",
        "Measure a model, or samples that are there, by the protocol of params.yaml.",
    ),
    "likelihood": Command(
        "likelihood:likelihood",
        "How well a model predicts held-out images, in bits per dimension (lower is better).",
    ),
    "sample": Command("sample:sample", "Draw images from a model."),
    "edit": Command("edit:edit", "Inpaint, outpaint, uncrop or change the class of an image."),
    "animate": Command(
        "animate:animate",
        "Watch images grow: patch by patch, and inside each patch down to its pixels.",
    ),
    "plan": Command(
        "plan:plan", "What training and sampling a size would cost: operations, memory, time, disk."
    ),
    "results": Command(
        "results:results",
        "All evaluated models of the MLflow store, beside the published numbers.",
    ),
    "benchmark": Command(
        "benchmark:benchmark",
        "Time sampling, a training step or a likelihood pass of a model with random weights.",
    ),
    "import": Command(
        "import_export:import_checkpoint", "Turn a published checkpoint into one of ours."
    ),
    "export": Command(
        "import_export:export_model",
        "Write a model as a folder of safetensors and JSON, as the Hugging Face hub expects it.",
    ),
}


class LazyGroup(TyperGroup):
    """Knows the commands by name and summary, and imports the one that is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command that can be listed; `resolve_command` gives the one that can be called."""
        if cmd_name not in COMMANDS:
            return None
        return typer.core.TyperCommand(cmd_name, help=COMMANDS[cmd_name].summary)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, load_command(str(name)), rest


def load_command(name: str) -> Any:
    """Import a command's module; returns the command as Typer runs it."""
    module, attribute = COMMANDS[name].place.split(":")
    target = getattr(import_module(f"fractal_model.cli.{module}"), attribute)
    if not isinstance(target, typer.Typer):
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(name)(target)
        target = single
    return typer.main.get_command(target)


app = typer.Typer(
    cls=LazyGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


@app.callback()
def fractal() -> None:
    """Train, measure and serve fractal generative models."""


def main() -> None:
    with errors_on_one_line():
        run(app)
