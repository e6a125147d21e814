"""The command line: `fractal …`, also `python -m fractal_model …`.

Decided here: a command's module is imported when the command is called, and what is slow to import
(torch, MLflow, Ray, pandas) inside the function that needs it, so that help and a mistyped option
are answered at once.
"""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from fractal_model.common.console import errors_on_one_line, run

COMMANDS = {
    "data": "Register images, prepare them and describe what was prepared.",
    "models": "The registered models: list them, choose the champion, go back to the one before.",
    "services": "Prefect, MLflow and Ray on this machine, on loopback.",
    "parity": "Hold the model against numbers measured on the published implementation.",
    "ui": "Open the MLflow UI on this machine's own store.",
    "evaluate": "Measure a model, or samples that are there, by the protocol of params.yaml.",
    "likelihood": "How well a model predicts held-out images, in bits per dimension (lower is "
    "better).",
    "sample": "Draw images from a model.",
    "edit": "Inpaint, outpaint, uncrop or change the class of an image.",
    "animate": "Watch images grow: patch by patch, and inside each patch down to its pixels.",
    "plan": "What training and sampling a size would cost: operations, memory, time, disk.",
    "results": "All evaluated models of the MLflow store, beside the published numbers.",
    "benchmark": "Time sampling, a training step or a likelihood pass of a model with random "
    "weights.",
    "import": "Turn a published checkpoint into one of ours.",
    "export": "Write a model as a folder of safetensors and JSON, as the Hugging Face hub expects "
    "it.",
}
"""Summaries. A command is the function of its name in the module of its name, a group of commands
the Typer `app` there; Python keeps `import` for itself."""
GROUPS = {"data", "models", "services"}
ELSEWHERE = {"import": "import_export:import_checkpoint", "export": "import_export:export_model"}


class LazyGroup(TyperGroup):
    """Knows the commands by name and summary, and imports the one that is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command that can be listed; `resolve_command` gives the one that can be called."""
        if cmd_name not in COMMANDS:
            return None
        return typer.core.TyperCommand(cmd_name, help=COMMANDS[cmd_name])

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, load_command(str(name)), rest


def load_command(name: str) -> Any:
    """Import a command's module; returns the command as Typer runs it."""
    place, _, function = ELSEWHERE.get(name, f"{name}:{name}").partition(":")
    module = import_module(f"fractal_model.cli.{place}")
    target = getattr(module, "app" if function in GROUPS else function)
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
