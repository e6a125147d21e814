"""The command line: `fractal …`, also `python -m fractal_model …`.

Decided here: the module of a command is imported when the command is called, and libraries that are
slow to import (torch, MLflow, Ray, pandas) are imported inside the function that needs them. Help
and the error about a mistyped option therefore come at once.
"""

import re
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from fractal_model.common.console import errors_on_one_line, run
from fractal_model.common.installation import import_flow

COMMANDS = {
    "init": "Write a project folder to work in without a clone: params.yaml, dvc.yaml and data/.",
    "data": "Register images, prepare data sets from them, and check and describe the data sets.",
    "size": "Propose a new size for a data set.",
    "models": "List the registered models and choose the champion by hand.",
    "services": "Start and stop the Prefect, MLflow and Ray servers of this machine.",
    "params": "Show the settings that are in force.",
    "schema": "Write the JSON schema of params.yaml, by which editors complete and check it.",
    "parity": "Compare our model with numbers measured on the published implementation.",
    "ui": "Serve MLflow's pages with the runs and models in this project's folder.",
    "playground": "Serve a page on which images are drawn, edited, compared and examined.",
    "train": "Train a size on its data set and register the model.",
    "tune-ddo": "Fine-tune an AR model with its own samples and register the result.",
    "evaluate": "Measure a model, or existing samples, by the protocol in params.yaml.",
    "sweep": "Find the guidance, logit scale, iterations and weights with the lowest FID.",
    "study": "Compare variants of a recipe over several seeds, and write the table and the page.",
    "nightly": "Evaluate every registered size whose candidate has no evaluation under the current "
    "protocol.",
    "prepare": "Prepare a data set: its images, the features that FID compares with, and its "
    "report.",
    "likelihood": "Measure how well a model predicts images, in bits per dimension.",
    "sample": "Draw images from a model.",
    "edit": "Inpaint, outpaint, uncrop or change the class of an image.",
    "animate": "Draw images and write an animation of how they grow, patch by patch.",
    "plan": "Estimate what training and sampling cost: operations, memory, time, disk space.",
    "results": "Show the metrics of all evaluated models, beside the published numbers.",
    "benchmark": "Time sampling, a training step or a likelihood pass on this machine.",
    "import": "Download a published checkpoint and convert it into one of this project.",
    "export": "Write a model as a folder in the form of the Hugging Face hub, and push it there.",
}
"""Summary of each command. A command is a function in a module; both have the command's name."""
GROUPS = {"data", "models", "services", "size", "params"}
"""Commands with subcommands. The module of such a command has a Typer object named `app`."""
FLOWS = {"train", "tune-ddo", "sweep", "nightly", "prepare"}
"""Commands that run a Prefect flow. The flow's module of the same name, with `_` for `-`, has the
function `command`, and importing it takes seconds."""
OTHER_PLACES = {"import": "import_checkpoint:import_checkpoint"}
"""Module and function of each command whose module has another name. Python could not import a
module named `import`, because this word is a keyword."""


class LazyGroup(TyperGroup):
    """Typer group that lists all commands, but imports the module of the called command only."""

    def __init__(self, **settings: Any) -> None:
        listed = {name: TyperCommand(name, help=summary) for name, summary in COMMANDS.items()}
        super().__init__(**settings | {"commands": listed})

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, load_command(str(name)), rest


def _find_target(name: str) -> Any:
    if name in FLOWS:
        return import_flow(name.replace("-", "_")).command
    place, _, function = OTHER_PLACES.get(name, f"{name}:{name}").partition(":")
    module = import_module(f"fractal_model.cli.{place}")
    return getattr(module, "app" if function in GROUPS else function)


def load_command(name: str) -> Any:
    """Import the module of a command and return the command as an object that Typer can run."""
    from fractal_model.cli.options import group  # It imports the settings, which take their time.

    target = _find_target(name)
    if not isinstance(target, typer.Typer):
        single = group()
        single.command(name)(target)
        target = single
    command = typer.main.get_command(target)
    for described in (command, *getattr(command, "commands", {}).values()):
        # A paragraph of a docstring is one line in the help, which the terminal then wraps.
        described.help = re.sub(r"(?<!\n)\n(?!\n)", " ", described.help or "")
    return command


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def fractal() -> None:
    """Train, measure and serve fractal generative models."""


def main() -> None:
    with errors_on_one_line():
        run(app)
