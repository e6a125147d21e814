"""`fractal likelihood`: measure how well a model predicts images."""

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
    find_outputs,
    parse_text,
    path_option,
)
from fractal_model.common.console import progress_bar, say, show
from fractal_model.common.errors import FractalError
from fractal_model.common.files import atomic_file, require_writable_file
from fractal_model.common.plurals import count_of
from fractal_model.config.params_source import DEFAULT_SOURCE, ParamsSource

if TYPE_CHECKING:
    from fractal_model.model.likelihood import Likelihood


def likelihood(
    model: ModelOption,
    data: Annotated[
        str, typer.Option(parser=parse_text, metavar="DATASET", help="A data set's name or folder.")
    ],
    split: Annotated[str, typer.Option(help="The split: train or validation.")] = "validation",
    passes: Annotated[int, typer.Option(help="Random masks per image; AR models need none.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the masks.")] = 0,
    conditional: Annotated[
        bool, typer.Option("--conditional", help="Give the model the class of each image.")
    ] = False,
    workers: WorkersOption = None,
    batch_size: BatchSizeOption = None,
    out: Annotated[Path | None, path_option("A CSV file for the bits of each image.")] = None,
    params: ParamsOption = DEFAULT_SOURCE,
) -> dict[str, object]:
    """Measure how well a model predicts images, in bits per dimension.

    Lower is better. The value is exact for AR models. For MAR models it is an upper bound that is
    estimated with random masks.
    """
    from fractal_model.data.manifest import manifest_files
    from fractal_model.data.prepared import open_prepared
    from fractal_model.evaluation.measure_likelihood import measure_likelihood
    from fractal_model.parallel.parts import LARGEST_PART
    from fractal_model.parallel.split import split_over_workers
    from fractal_model.tracking.model_source import load_model

    if out is not None:
        require_writable_file(out)
    folder = _find_data(data, params)
    images = open_prepared(folder, split)
    network = load_model(model, find_outputs(params))
    with progress_bar("likelihood, images", len(images), images=True) as update:
        result = measure_likelihood(
            network,
            images,
            update,
            passes=passes,
            seed=seed,
            conditional=conditional,
            largest=LARGEST_PART if batch_size is None else batch_size,
            map_parts=split_over_workers(workers, manifest_files(folder)),
        )
    kind = "conditional" if conditional else "unconditional"
    show(f"{images.manifest.dataset} {split}, {kind}: {_summary(result, seed)}")
    if out is not None:
        import pandas as pd

        values = {"label": images.labels().tolist(), "bits_per_dim": result.per_image.numpy()}
        with atomic_file(out) as partial:
            pd.DataFrame(values).to_csv(partial, index_label="index")
        say(f"value of each image: {out}")
    return {
        "dataset": images.manifest.dataset,
        "split": split,
        "conditional": conditional,
        "bits_per_dim": result.mean,
        "standard_error": result.standard_error if len(result.per_image) > 1 else None,
        "monte_carlo_error": 0.0 if result.exact else result.monte_carlo_error,
        "exact": result.exact,
        "images": len(result.per_image),
        "passes": result.passes,
        "seed": seed,
    }


def _find_data(data: str, params: ParamsSource) -> Path | str:
    """Return the place of a data set that is given as a name or a folder. FractalError: it is no
    folder, and there are no settings that know names."""
    from fractal_model.data.object_store import is_remote

    if is_remote(data) or Path(data).is_dir():
        return data
    if find_outputs(params) is None:
        raise FractalError(
            f"{data} is no folder here, and there is no {params} that knows data sets by name: "
            f"give the folder of a prepared data set, or run in a project's folder",
            setting="data",
        )
    return params.load().dataset_folder(data)


def _summary(result: Likelihood, seed: int) -> str:
    count = len(result.per_image)
    images, passes = count_of(count, "image"), count_of(result.passes, "pass", "passes")
    over_images = f"± {result.standard_error:.4f} over images" if count > 1 else "of one image"
    value = f"{result.mean:.4f} bits/dim {over_images}"
    if result.exact:
        return f"{value}; exact, {images}"
    error = result.monte_carlo_error
    masks = "unknown from one pass" if math.isnan(error) else f"at most about {error:.4f}"
    return (
        f"{value}; upper bound, Monte Carlo error of the masks {masks}; {passes}, {images}, "
        f"seed {seed}"
    )
