"""`fractal export`: write a model as a folder for the Hugging Face hub, and push it."""

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fractal_model.cli.options import (
    ModelOption,
    ParamsOption,
    parse_text,
    path_option,
)
from fractal_model.cli.sampling_options import SizeOption, load_served
from fractal_model.common.console import say
from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.files import atomic_folder, require_new
from fractal_model.config.params_source import DEFAULT_SOURCE

if TYPE_CHECKING:
    from fractal_model.model.fractal import FractalModel
    from fractal_model.reporting.results_table import Row

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


def export(
    model: ModelOption,
    out: Annotated[
        Path | None,
        path_option("The folder to write; must not exist. Default with --push: none is kept."),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            parser=parse_text,
            metavar="USER/NAME",
            help="Push the folder to this repository of the Hugging Face hub.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write to --out what --push would push; push nothing.")
    ] = False,
    license: Annotated[
        str,
        typer.Option(help="Licence of the weights, as the hub's identifier, such as cc-by-4.0."),
    ] = "mit",
    samples: Annotated[
        Path | None,
        path_option("A PNG of samples for the card. Default: the one of the model's evaluation."),
    ] = None,
    size: SizeOption = None,
    params: ParamsOption = DEFAULT_SOURCE,
) -> dict[str, object]:
    """Write a model as a folder in the form of the Hugging Face hub, and push it there.

    The folder holds safetensors and JSON: weights, architecture, class names and sampling settings.
    Load it with FractalPipeline.from_pretrained(FOLDER), or give it to any --model option. Its card
    has the licence and, for a registered model, the metrics and samples of the newest evaluation of
    the same weights.
    """
    from fractal_model.checkpoints.hub_upload import push_folder
    from fractal_model.reporting.model_card import complete_card

    _require_options(out, push, dry_run, license, samples)
    with tempfile.TemporaryDirectory() as scratch:
        folder = out or Path(scratch) / "model"
        require_new(folder)
        network, serving = load_served(model, size, params)
        serving.require_no_guide()
        network.serving = serving
        evaluation = _find_evaluation(model, network)
        if samples is None and evaluation is not None:
            samples = _download_samples(evaluation.run, Path(scratch))
        with atomic_folder(folder, "the exported model") as partial:
            network.save_pretrained(partial)
            complete_card(
                partial / "README.md",
                name=(push or folder.name).rpartition("/")[2],
                license=license,
                evaluation=evaluation,
                picture=samples,
            )
        files = sorted(path.name for path in folder.iterdir())
        if out is not None:
            say(f"exported {model} to {out}: {', '.join(files)}")
        address = None
        if dry_run:
            say(f"nothing is pushed; {push} would receive {', '.join(files)}")
        elif push is not None:
            address = push_folder(folder, push)
            say(f"pushed {model} to {address}: {', '.join(files)}")
    return {"model": model, "out": out, "files": files, "address": address}


def _require_options(
    out: Path | None, push: str | None, dry_run: bool, license: str, samples: Path | None
) -> None:
    """Check the options before any work. FractalError: one is missing or not valid, or there is no
    token to push with."""
    from fractal_model.checkpoints.hub_upload import require_login, require_repository_name

    if out is None and (push is None or dry_run):
        raise FractalError("no folder is named to write the model to: give one", setting="out")
    if dry_run and push is None:
        raise FractalError("a dry run needs a repository: give its USER/NAME", setting="push")
    if not _LICENSE.fullmatch(license):
        raise FractalError(
            f"{license!r} is no licence of the hub: give an identifier such as mit",
            setting="license",
        )
    if samples is not None:
        _require_png(samples)
    if push is not None:
        require_repository_name(push)
        if not dry_run:
            require_login()


def _find_evaluation(model: str, network: "FractalModel") -> "Row | None":
    """Return the evaluation of a registered model with the weights of `network`, or None."""
    from fractal_model.tracking.model_source import REGISTRY_SCHEME, split_weights

    if not model.startswith(REGISTRY_SCHEME):
        return None
    from fractal_model.tracking import evaluations, registry

    version = registry.find_version(split_weights(model)[0])  # Loading has connected the store.
    evaluation = evaluations.find_evaluation(version, network)
    if evaluation is None:
        say(f"{model} has no evaluation of these weights, so the card has no metrics")
    return evaluation


def _download_samples(run_id: str, folder: Path) -> Path | None:
    from fractal_model.tracking import runs

    with runs.optional_step("picture of the samples"):
        return runs.download(run_id, runs.SAMPLES_PICTURE, folder)
    return None


def _require_png(file: Path) -> None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            kind = image.format
    except (UnidentifiedImageError, OSError) as error:
        kind = f"no picture ({one_line(error)})"
    if kind != "PNG":
        raise FractalError(f"{file} is {kind}, expected a PNG", setting="samples")
