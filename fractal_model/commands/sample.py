"""`fractal sample`: images from a model, of any number of classes and in any number."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fractal_model.commands.options import (
    BatchSizeOption,
    ModelOption,
    ParamsOption,
    WorkersOption,
    parts_mapper,
)
from fractal_model.console import progress_bar, say
from fractal_model.errors import FractalError
from fractal_model.params import DEFAULT_FILE, describe, load_params

if TYPE_CHECKING:
    from fractal_model.config import ModelConfig
    from fractal_model.params import Params
    from fractal_model.sampling.settings import SamplingConfig

LARGEST_REQUEST = 1_000_000


def sample(
    model: ModelOption,
    out: Annotated[
        Path,
        typer.Option(help="x.png: a grid; x.npz: one array (ADM's format); a folder: PNG files."),
    ],
    classes: Annotated[
        str, typer.Option(help="Numbers or names, with commas; none is unconditional.")
    ] = "none",
    n: Annotated[int, typer.Option("--n", help="Images of each class.")] = 16,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance, 0 or more; 1 is none.")
    ] = None,
    logit_scale: Annotated[
        float | None,
        typer.Option(help="Multiplies the logits, the paper's temperature; above 1 it sharpens."),
    ] = None,
    iterations: Annotated[
        str | None, typer.Option(help="Steps of each level from the top, with commas: 64,16.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the first image; the next ones count up.")] = 0,
    workers: WorkersOption = None,
    batch_size: BatchSizeOption = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Whose sampling settings in params.yaml are the defaults; known from the model "
            "where it is one of the sizes there."
        ),
    ] = None,
    params: ParamsOption = DEFAULT_FILE,
) -> None:
    """Draw images from a model. An image depends on its class, its seed and the settings alone,
    whatever the batch size or the number of workers."""
    import torch

    from fractal_model.classes import parse_classes
    from fractal_model.evaluation import sample_images
    from fractal_model.model_source import load_model
    from fractal_model.parts import LARGEST_PART
    from fractal_model.sample_files import open_writer

    settings = load_params(params)
    network = load_model(model, settings.paths.outputs)
    asked = parse_classes(classes, network.config)
    _require_request(len(asked), n, seed, batch_size)
    given = {"guidance": guidance, "logit_scale": logit_scale, "iterations": iterations}
    sampling = sampling_settings(settings, network.config, size, given)
    labels = torch.tensor(asked).repeat_interleave(n)
    map_parts = parts_mapper(workers)
    writer = open_writer(out, labels, image_size=network.config.image_size, per_class=n)
    largest = LARGEST_PART if batch_size is None else batch_size
    started, done = time.monotonic(), 0
    try:
        with progress_bar("sampling, images", len(labels)) as update:
            for part, images in sample_images(
                network, sampling, labels, seed=seed, largest=largest, map_parts=map_parts
            ):
                writer.add(part, images)
                done += len(part)
                update(done, f"{done / (time.monotonic() - started):.1f} images/s")
        writer.finish()
    except BaseException:
        writer.discard()
        raise
    say(f"{done} images, seeds {seed} … {seed + done - 1}: {out}")


def sampling_settings(
    params: Params, model: ModelConfig, size: str | None, given: dict[str, object]
) -> SamplingConfig:
    """The size's settings with what was given in their place (None: not given).

    FractalError: a value out of range, with the range; a model that is no size of `params`.
    """
    from pydantic import ValidationError

    from fractal_model.sampling.settings import SamplingConfig

    chosen = params.size(size) if size is not None else params.size_of(model)
    changes = {name: value for name, value in given.items() if value is not None}
    if "iterations" in changes:
        changes["iterations"] = [part.strip() for part in str(changes["iterations"]).split(",")]
    try:
        sampling = SamplingConfig(**(chosen.sampling.model_dump() | changes))
    except ValidationError as error:
        raise FractalError(
            f"{describe(error, SamplingConfig)}; allowed: guidance 0 or more, logit scale above 0, "
            f"iterations 1 or more for each level"
        ) from error
    sampling.level_iterations(model)
    return sampling


def _require_request(classes: int, n: int, seed: int, batch_size: int | None) -> None:
    from fractal_model.randomness import LARGEST_SEED

    total = classes * n
    if not 1 <= total <= LARGEST_REQUEST:
        raise FractalError(
            f"{total} images asked for ({classes} classes of {n}): 1 … {LARGEST_REQUEST} at a "
            f"time; go on with another --seed for more"
        )
    if not 0 <= seed <= LARGEST_SEED - total + 1:
        raise FractalError(
            f"seed {seed} with {total} images is out of range: give --seed 0 … "
            f"{LARGEST_SEED - total + 1}"
        )
    if batch_size is not None and batch_size < 1:
        raise FractalError(f"batch size {batch_size} asked for: give 1 or more")
