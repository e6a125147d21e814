"""`fractal edit`: generate a part of an image from the rest of it."""

from pathlib import Path
from typing import Annotated

import typer

from fractal_model.cli.options import BatchSizeOption, WorkersOption, path_option
from fractal_model.cli.sampling_options import (
    ClassesOption,
    SamplingOptions,
    require_images,
    with_sampling_options,
)
from fractal_model.common.console import progress_bar, say
from fractal_model.common.errors import FractalError
from fractal_model.common.files import require_writable_file


@with_sampling_options
def edit(
    image: Annotated[Path, path_option("The image to edit, of the model's resolution.")],
    classes: ClassesOption,
    out: Annotated[Path, path_option("The PNG file to write.")],
    mask: Annotated[
        Path | None, path_option("A mask: black is kept, white or transparent is generated.")
    ] = None,
    box: Annotated[
        str | None, typer.Option(help="Box to generate: TOP,LEFT,HEIGHT,WIDTH, such as 4,0,4,8.")
    ] = None,
    outside: Annotated[bool, typer.Option("--outside", help="Generate all but the box.")] = False,
    uncrop: Annotated[
        float | None, typer.Option(help="Factor to shrink by, such as 0.5; the rest is generated.")
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Crop image and mask to a square, then resize them.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the first variant of each class.")] = 0,
    n: Annotated[int, typer.Option("--n", help="Number of variants of each class.")] = 1,
    grid: Annotated[
        Path | None, path_option("The PNG file for image, mask and variants side by side.")
    ] = None,
    workers: WorkersOption = None,
    batch_size: BatchSizeOption = None,
    *,
    options: SamplingOptions,
) -> dict[str, object]:
    """Inpaint, outpaint, uncrop or change the class of an image.

    Say what to generate with --mask, --box or --uncrop. All other pixels are known: they stay
    exactly as they are, and the new ones are generated from them. A MAR level reads the known
    pixels on all sides. An AR level reads only those that come before in raster order.

    Several variants are written beside --out, each in a file with its class and seed, such as
    OUT-class7-seed0.png.
    """
    import torch

    from fractal_model.generation import editing
    from fractal_model.generation.classes import parse_classes
    from fractal_model.generation.pictures import grey_out, picture_grid, save_png
    from fractal_model.generation.request import parse_numbers
    from fractal_model.parallel.parts import LARGEST_PART
    from fractal_model.parallel.split import split_over_workers

    for target in (out, grid or out):
        if target.suffix.lower() != ".png":
            raise FractalError(
                f"{target} is no PNG file: name it .png, since other formats change known pixels"
            )
    _require_one_mask(mask, box, uncrop, outside)
    require_images(classes, n, seed, batch_size)
    loaded, serving = options.load()
    labels = parse_classes(classes, loaded.config)
    editing.require_different(labels)
    side = loaded.config.image_size
    picture = original = editing.read_image(image, side, fit=fit)
    if uncrop is not None:
        picture, known = editing.uncrop(picture, uncrop)
    elif box is not None:
        known = editing.box_mask(parse_numbers(box, "box", 4), side, outside=outside)
    else:
        assert mask is not None  # Exactly one of the three options is given.
        known = editing.read_mask(mask, side, fit=fit)
    files = _variant_files(labels, seed, n, out)
    if grid is not None and grid.resolve() in {file.resolve() for file in files}:
        raise FractalError(f"--grid {grid} is the file of an edited image: give another name")
    for target in (out, grid or out):
        require_writable_file(target)
    repeated = torch.tensor(labels).repeat_interleave(n)
    seeds = list(range(seed, seed + n)) * len(labels)
    with progress_bar("generating", len(seeds)) as update:
        images = editing.edit(
            loaded,
            serving.sampling,
            picture,
            known,
            repeated,
            seeds,
            update,
            largest=LARGEST_PART if batch_size is None else batch_size,
            map_parts=split_over_workers(workers),
        )
    for variant, file in zip(images, files, strict=True):
        save_png(variant, file)
    if grid is not None:
        inputs = torch.stack([original, grey_out(picture[None], ~known[None])[0]])
        rows = [torch.cat([inputs, part]) for part in images.split(n)]
        save_png(picture_grid(torch.cat(rows), columns=n + 2), grid)
        say(f"image, mask and variants side by side: {grid}")
    share = 1 - known.float().mean().item()
    say(f"{share:.0%} of the pixels generated: {_names(files)}")
    return {"files": files, "grid": grid, "generated_share": share, "seeds": seeds}


def _require_one_mask(
    mask: Path | None, box: str | None, uncrop: float | None, outside: bool
) -> None:
    options = {"--mask": mask, "--box": box, "--uncrop": uncrop}
    named = [name for name, value in options.items() if value is not None]
    if len(named) != 1:
        raise FractalError(
            f"found {' and '.join(named) or 'no option'} to say what to generate: give one of "
            f"--mask, --box and --uncrop"
        )
    if outside and box is None:
        raise FractalError("--outside is given without --box: give the box to keep")


def _variant_files(labels: list[int], seed: int, n: int, out: Path) -> list[Path]:
    """Return the files of the variants, `n` for each class, class by class. A single variant is
    written to `out`. Several are written beside `out`, with class and seed added to its name."""
    if len(labels) * n == 1:
        return [out]
    names = ["none" if label < 0 else str(label) for label in labels]
    return [
        out.with_stem(f"{out.stem}-class{name}-seed{seed + i}") for name in names for i in range(n)
    ]


def _names(files: list[Path]) -> str:
    if len(files) == 1:
        return str(files[0])
    return f"{len(files)} variants, {files[0]} … {files[-1].name}"
