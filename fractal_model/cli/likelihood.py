"""`fractal likelihood`: how well a model predicts held-out images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fractal_model.cli.options import (
    BatchSizeOption,
    ModelOption,
    ParamsOption,
    WorkersOption,
    given,
    path,
)
from fractal_model.common.console import progress_bar, say
from fractal_model.common.files import atomic_file, require_writable_file
from fractal_model.config.params import DEFAULT_FILE, load_params

if TYPE_CHECKING:
    from fractal_model.model.likelihood import Likelihood


def likelihood(
    model: ModelOption,
    data: Annotated[
        str,
        typer.Option(
            parser=given,
            metavar="TEXT",
            help="A prepared data set: its folder, or its name in the data folder.",
        ),
    ],
    split: Annotated[
        str, typer.Option(help="Which of its splits: train or validation.")
    ] = "validation",
    passes: Annotated[
        int, typer.Option(help="Mask draws an image; an AR model is exact and takes one.")
    ] = 16,
    seed: Annotated[int, typer.Option(help="Of the masks.")] = 0,
    conditional: Annotated[
        bool, typer.Option("--conditional", help="Tell the model each image's class.")
    ] = False,
    workers: WorkersOption = None,
    batch_size: BatchSizeOption = None,
    out: Annotated[
        Path | None, typer.Option(parser=path, help="A CSV file with every image's value.")
    ] = None,
    params: ParamsOption = DEFAULT_FILE,
) -> None:
    """How well a model predicts held-out images, in bits per dimension (lower is better).

    Exact for autoregressive models; for masked ones an upper bound, estimated with random masks.
    """
    from fractal_model.data.manifest import manifest_files
    from fractal_model.data.object_store import is_remote
    from fractal_model.data.prepared import open_prepared
    from fractal_model.evaluation.held_out_likelihood import measure_likelihood
    from fractal_model.parallel.parts import LARGEST_PART
    from fractal_model.parallel.ray_workers import split_over_workers
    from fractal_model.tracking.model_source import load_model

    if out is not None:
        require_writable_file(out)
    settings = load_params(params)
    is_place = is_remote(data) or Path(data).is_dir()
    found = data if is_place else settings.dataset_folder(data)
    images = open_prepared(found, split)
    network = load_model(model, settings.paths.outputs)
    with progress_bar("likelihood, images", len(images), images=True) as update:
        result = measure_likelihood(
            network,
            images,
            update,
            passes=passes,
            seed=seed,
            conditional=conditional,
            largest=LARGEST_PART if batch_size is None else batch_size,
            map_parts=split_over_workers(workers, manifest_files(found)),
        )
    kind = "conditional" if conditional else "unconditional"
    say(f"{images.manifest.dataset} {split}, {kind}: {_summary(result, seed)}")
    if out is not None:
        import pandas as pd

        values = {"label": images.labels().tolist(), "bits_per_dim": result.per_image.numpy()}
        with atomic_file(out) as partial:
            pd.DataFrame(values).to_csv(partial, index_label="index")
        say(f"every image's value: {out}")


def _summary(result: Likelihood, seed: int) -> str:
    count = len(result.per_image)
    over_images = f"± {result.standard_error:.4f} over images" if count > 1 else "of one image"
    value = f"{result.mean:.4f} bits/dim {over_images}"
    if result.exact:
        return f"{value}; exact, {count} images"
    error = result.monte_carlo_error
    masks = "unknown from one pass" if math.isnan(error) else f"at most about {error:.4f}"
    return (
        f"{value}; upper bound, Monte Carlo error of the masks {masks}; {result.passes} passes, "
        f"{count} images, seed {seed}"
    )
