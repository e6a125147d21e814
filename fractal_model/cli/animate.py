"""`fractal animate`: write an animation of how images grow."""

from pathlib import Path
from typing import Annotated

import typer

from fractal_model.cli.options import path_option
from fractal_model.cli.sampling_options import (
    ClassesOption,
    SamplingOptions,
    require_images,
    with_sampling_options,
)
from fractal_model.common.console import progress_bar, say
from fractal_model.common.files import require_writable_file


@with_sampling_options
def animate(
    classes: ClassesOption,
    out: Annotated[Path, path_option("The animation to write, .gif or .webp.")],
    sheet: Annotated[
        Path | None,
        path_option("The PNG file for a still picture of some frames. Default: beside --out."),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the first image; it rises by 1 from class to class.")
    ] = 0,
    frames: Annotated[int, typer.Option(help="Largest number of frames.")] = 120,
    *,
    options: SamplingOptions,
) -> dict[str, object]:
    """Draw images and write an animation of how they grow, patch by patch.

    The patches that are being generated are outlined: orange at level 0, blue and green at the
    levels below. Several classes grow side by side.
    """
    import torch

    from fractal_model.common.devices import compute_device
    from fractal_model.generation import animation
    from fractal_model.generation.classes import parse_classes, split_classes

    sheet = sheet or out.with_suffix(".png")
    require_images(classes, 1, seed)
    animation.require_animation(out, sheet, frames=frames, images=len(split_classes(classes)))
    network, serving = options.load()
    labels = torch.tensor(parse_classes(classes, network.config))
    for target in (out, sheet):
        require_writable_file(target)
    seeds = range(seed, seed + len(labels))
    with progress_bar("generating, %", 100) as update:
        files = animation.animate(
            network.to(compute_device()),
            labels,
            seeds,
            serving.sampling,
            out,
            sheet=sheet,
            frames=frames,
            progress=update,
        )
    for file in files:
        say(f"{file}: {file.stat().st_size / 1000:.0f} kB")
    return {"files": files, "first_seed": seed, "last_seed": seeds[-1]}
