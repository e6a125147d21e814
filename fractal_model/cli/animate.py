"""`fractal animate`: images as they grow, patch by patch."""

from pathlib import Path
from typing import Annotated

import typer

from fractal_model.cli.options import path
from fractal_model.cli.sampling_options import (
    ClassesOption,
    SamplingOptions,
    require_request,
    with_sampling_options,
)
from fractal_model.common.console import progress_bar, say
from fractal_model.common.files import require_writable_file


@with_sampling_options
def animate(
    classes: ClassesOption,
    out: Annotated[Path, typer.Option(parser=path, help="The animation to write: .gif or .webp.")],
    sheet: Annotated[
        Path | None,
        typer.Option(
            parser=path,
            help="The still picture of some of its moments, PNG. Default: beside --out.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the first class's image; the next has one more.")
    ] = 0,
    frames: Annotated[int, typer.Option(help="Frames at most; steps are thinned evenly.")] = 120,
    *,
    options: SamplingOptions,
) -> None:
    """Watch images grow: patch by patch, and inside each patch down to its pixels.

    Patches being worked on are outlined: orange for the first level's, blue and green for those
    inside them. Several classes grow side by side.
    """
    import torch

    from fractal_model.common.memory import compute_device
    from fractal_model.generation import animation
    from fractal_model.generation.classes import parse_classes, split_classes

    sheet = sheet or out.with_suffix(".png")
    require_request(classes, 1, seed)
    animation.require_animation(out, sheet, frames=frames, images=len(split_classes(classes)))
    network, sampling = options.load()
    labels = torch.tensor(parse_classes(classes, network.config))
    for target in (out, sheet):
        require_writable_file(target)
    seeds = range(seed, seed + len(labels))
    with progress_bar("generating, %", 100) as update:
        written = animation.animate(
            network.to(compute_device()),
            labels,
            seeds,
            sampling,
            out,
            sheet=sheet,
            frames=frames,
            progress=update,
        )
    for made in written:
        say(f"{made}: {made.stat().st_size / 1000:.0f} kB")
