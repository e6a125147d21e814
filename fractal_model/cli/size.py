"""`fractal size …`: propose a new size for a data set and write it to params.yaml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fractal_model.cli.options import ParamsOption, group, path_option
from fractal_model.common.console import only_result_on_stdout, say, show
from fractal_model.common.errors import FractalError
from fractal_model.common.files import atomic_file, require_new, require_writable_file
from fractal_model.common.tables import FittedTable
from fractal_model.config.params import Params
from fractal_model.config.params_source import DEFAULT_SOURCE

if TYPE_CHECKING:
    from fractal_model.sizing.choices import Proposal
    from fractal_model.sizing.proposal import Request

app = group("Propose a new size for a data set.")
_NAME = re.compile(r"[a-z0-9-]{1,100}")
_SECONDS = {"m": 60.0, "h": 3600.0, "d": 86_400.0}
_LONGEST_DAYS = 365


def parse_budget(text: str) -> float:
    """Return a length of time such as 45m, 2h or 1.5d in seconds. BadParameter: it is none, or not
    between a minute and a year."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)\s*([mhd])", text.strip())
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not 60 <= seconds <= _LONGEST_DAYS * 86_400:
        raise typer.BadParameter(
            f"{text!r} is no training time between a minute and a year: give one such as 45m, 2h "
            f"or 1.5d"
        )
    return seconds


@app.callback()
def size() -> None:
    """Propose a new size for a data set."""


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the new size, such as flowers.")],
    dataset: Annotated[str, typer.Option(help="A prepared data set, such as flowers.")],
    like: Annotated[
        str | None,
        typer.Option(
            help="A size whose architecture and recipe to follow, such as mar-64. The images must "
            "have its resolution."
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            parser=parse_budget,
            metavar="TIME",
            help="Training time on this machine, such as 45m, 2h or 1.5d. Default: an hour on a "
            "CPU, 8 hours on GPUs, or the epochs of the size to follow.",
        ),
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Mirror half of the images.")] = False,
    check: Annotated[
        bool, typer.Option(help="Try a training step, and plan with its measured time.")
    ] = True,
    out: Annotated[
        Path | None, path_option("A new file for the entries, instead of the settings file.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the entries and write nothing.")
    ] = False,
    params: ParamsOption = DEFAULT_SOURCE,
) -> dict[str, object]:
    """Propose all settings of a new size, with reasons, and add them to params.yaml.

    The proposal follows from the number, classes and resolution of the images, and from this
    machine's cores, memory and GPUs. Change any of it in the file afterwards.
    """
    from fractal_model.sizing.entries import add_entries, entries_text
    from fractal_model.sizing.proposal import propose
    from fractal_model.sizing.trial_step import propose_and_try

    settings = params.load()
    _require_new_name(settings, name)
    if out is not None:
        require_new(out)
        require_writable_file(out)
    with only_result_on_stdout(dry_run):
        request = _request(settings, dataset, like, budget, flip)
        if check:
            place = settings.dataset_folder(dataset)
            proposal, speed = propose_and_try(request, name, place)
        else:
            proposal, speed = propose(request), request.training_speed
        _print(name, request, proposal, speed, check)
    if dry_run:
        show(*entries_text(name, proposal).splitlines())
    elif out is not None:
        with atomic_file(out) as partial:
            partial.write_text(entries_text(name, proposal), encoding="utf-8")
        say(f"the entries are in {out}: add them to {params}")
    else:
        add_entries(params.file, name, proposal)
        say(f"added to {params}: `fractal train --size {name}` trains it")
    return {
        "size": name,
        "entries": {
            section: {setting: choice.value for setting, choice in entry.items()}
            for section, entry in proposal.sections.items()
        },
    }


def _require_new_name(settings: Params, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise FractalError(
            f"{name!r} cannot be the name of a size: give up to 100 lower-case letters, digits and "
            f"hyphens, such as flowers-64"
        )
    if name in settings.models:
        raise FractalError(
            f"the size {name} exists already: choose another name, or remove its entries in "
            f"models, training, sampling and evaluation first"
        )


def _request(
    settings: Params, dataset: str, like: str | None, budget: float | None, flip: bool
) -> Request:
    from fractal_model.data.prepared import open_prepared
    from fractal_model.sizing.choices import ImageSet
    from fractal_model.sizing.machine import find_machine
    from fractal_model.sizing.proposal import Request

    followed = None if like is None else settings.size(like)
    manifest = open_prepared(settings.dataset_folder(dataset), "train").manifest
    return Request(
        images=ImageSet.of(manifest),
        machine=find_machine(),
        budget=budget,
        like=followed,
        like_row=None if like is None else settings.models[like],
        flip=flip,
    )


def _print(name: str, request: Request, proposal: Proposal, speed: float, check: bool) -> None:
    from fractal_model.sizing.proposal import duration, training_seconds

    images, size = request.images, proposal.size(name)
    table = FittedTable(
        f"{name}: {images.train:,} images of {images.classes:,} classes, {images.resolution} px, "
        f"on {request.machine.words}",
        ["setting", "reason"],
        texts=(0, 1),
    )
    for entry in proposal.sections.values():
        for setting, choice in entry.items():
            if choice.reason:
                table.add_row(f"{setting}: {_words(choice.value)}", choice.reason)
        table.add_section()
    show(table)
    for note in proposal.notes:
        say(f"note: {note}")
    seconds = training_seconds(size, images.train, speed)
    basis = "from the time of a trial step" if check else "without a trial step"
    about = "about " if seconds >= 60 else ""
    say(f"{name}: training takes {about}{duration(seconds)} on this machine, {basis}")


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {number}" for key, number in list(value.items())[:1]) + " …"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
