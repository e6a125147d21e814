"""`fractal edit` and `fractal animate`: generation from a known part, and generation watched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fractal_model.console import progress_bar, say
from fractal_model.errors import FractalError
from fractal_model.params import DEFAULT_FILE, load_params

if TYPE_CHECKING:
    from torch import Tensor

    from fractal_model.config import ModelConfig
    from fractal_model.params import Params
    from fractal_model.sampling.orders import PatchOrder
    from fractal_model.sampling.settings import SamplingConfig

ModelOption = Annotated[
    str, typer.Option("--model", help="A checkpoint folder, or models:/NAME@ALIAS.")
]
ClassesOption = Annotated[
    str, typer.Option(help="Numbers or names, with commas; `none` for no class.")
]
SizeOption = Annotated[
    str | None,
    typer.Option(
        help="Take the sampling settings of this size in params.yaml; by default the size that "
        "the model is of."
    ),
]
GuidanceOption = Annotated[
    float | None, typer.Option(help="Classifier-free guidance; 1 is none. Default: the size's.")
]
LogitScaleOption = Annotated[
    float | None,
    typer.Option(
        help="Multiplies the logits (the paper's temperature): above 1 is sharper. "
        "Default: the size's."
    ),
]
IterationsOption = Annotated[
    str | None,
    typer.Option(help="Steps of each level from the top, as 16,4. Default: the size's."),
]
OrderOption = Annotated[
    str | None,
    typer.Option(
        help="In which order the first level's patches come: random, raster, centre-out, or a "
        "file with their numbers (row by row from 0). Patches inside them stay in random order."
    ),
]
ParamsOption = Annotated[Path, typer.Option("--params", help="The settings file.")]
EDIT_HELP = """Inpaint, outpaint, uncrop or change the class of an image.

Say what to generate with --mask, --box or --uncrop; all other pixels come back exactly as they
are, and the new ones are generated from them. A MAR model reads the known part on all sides. An AR
level is causal: it reads what lies before (in raster order), and known patches that lie after a
generated one stay but do not influence it.

Several classes or --n variants are written as numbered files beside --out:
OUT-class7-seed0.png, OUT-class7-seed1.png, …
"""


def edit(
    model: ModelOption,
    image: Annotated[Path, typer.Option(help="The image, of the model's size.")],
    classes: ClassesOption,
    out: Annotated[Path, typer.Option(help="The PNG file to write.")],
    mask: Annotated[
        Path | None, typer.Option(help="A picture: white is generated, black is kept.")
    ] = None,
    box: Annotated[
        str | None, typer.Option(help="TOP,LEFT,HEIGHT,WIDTH in pixels: generate this box.")
    ] = None,
    outside: Annotated[
        bool, typer.Option("--outside", help="Keep the box, generate around it.")
    ] = False,
    uncrop: Annotated[
        float | None,
        typer.Option(help="Shrink the image to this fraction of the side, generate around it."),
    ] = None,
    fit: Annotated[
        bool,
        typer.Option("--fit", help="Cut image and mask to the middle square and scale them."),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first variant.")] = 0,
    n: Annotated[int, typer.Option("--n", min=1, help="Variants of each class.")] = 1,
    grid: Annotated[
        Path | None,
        typer.Option(help="Also a PNG with image, mask and variants side by side, enlarged."),
    ] = None,
    size: SizeOption = None,
    guidance: GuidanceOption = None,
    logit_scale: LogitScaleOption = None,
    iterations: IterationsOption = None,
    order: OrderOption = None,
    params: ParamsOption = DEFAULT_FILE,
) -> None:
    import torch

    from fractal_model import editing
    from fractal_model.classes import parse_classes
    from fractal_model.images import picture_grid, save_png, with_gaps
    from fractal_model.model_source import load_model

    _require_png(out)
    _require_one_mask(mask, box, uncrop, outside)
    file = load_params(params)
    loaded = load_model(model, file.paths.outputs)
    settings = sampling_settings(
        file,
        loaded.config,
        size,
        guidance=guidance,
        logit_scale=logit_scale,
        iterations=iterations,
        order=order,
    )
    labels = parse_classes(classes, loaded.config)
    side = loaded.config.image_size
    picture = editing.read_image(image, side, fit=fit)
    original = picture
    if uncrop is not None:
        picture, known = editing.uncropped(picture, uncrop)
    elif box is not None:
        known = editing.box_mask(_numbers(box, "box", 4), side, outside=outside)
    else:
        known = editing.read_mask(mask, side, fit=fit)
    repeated = torch.tensor(labels).repeat_interleave(n)
    seeds = list(range(seed, seed + n)) * len(labels)
    with progress_bar("generating", len(seeds)) as update:
        images = editing.edit(loaded, settings, picture, known, repeated, seeds, update)
    written = _write_variants(images, labels, seeds, out)
    if grid is not None:
        shown = torch.stack([original, with_gaps(picture[None], ~known[None])[0]])
        rows = [torch.cat([shown, part]) for part in images.split(n)]
        save_png(picture_grid(torch.cat(rows), columns=n + 2), grid)
        say(f"image, mask and variants side by side: {grid}")
    share = 1 - known.float().mean().item()
    say(f"{share:.0%} of the pixels generated: {_summary(written)}")


edit.__doc__ = EDIT_HELP


def sampling_settings(
    params: Params,
    model: ModelConfig,
    size: str | None,
    *,
    guidance: float | None,
    logit_scale: float | None,
    iterations: str | None,
    order: str | None,
) -> SamplingConfig:
    """The settings of a size of params.yaml, by default the model's own, with what is given put in
    their place. FractalError: the model is of no known size, or a value is not allowed."""
    from pydantic import ValidationError

    from fractal_model.params import describe
    from fractal_model.sampling.settings import SamplingConfig

    base = params.size(size or _size_of(model, params)).sampling
    given = {
        "guidance": guidance,
        "logit_scale": logit_scale,
        "iterations": iterations and _numbers(iterations, "iterations", len(model.levels)),
        "order": order and _order(order),
    }
    changes = {name: value for name, value in given.items() if value is not None}
    try:
        return SamplingConfig.model_validate({**base.model_dump(), **changes})
    except ValidationError as error:
        raise FractalError(f"sampling settings: {describe(error, SamplingConfig)}") from error


def _size_of(model: ModelConfig, params: Params) -> str:
    nameless = model.model_copy(update={"class_names": ()})
    for name in params.models:
        if params.size(name).model == nameless:
            return name
    raise FractalError(
        f"the model ({model.image_size} px) is of no size of params.yaml: say whose sampling "
        f"settings to take with --size {' or '.join(params.models)}"
    )


def _order(text: str) -> PatchOrder:
    from typing import get_args

    from fractal_model.sampling.orders import OrderName

    if text in get_args(OrderName):
        return text
    if not Path(text).is_file():
        raise FractalError(
            f"order {text!r} is neither {', '.join(get_args(OrderName))} nor a file: choose one, "
            f"or give a file with the patches' numbers"
        )
    return _numbers(Path(text).read_text(errors="replace"), f"order file {text}", None)


def _numbers(text: str, what: str, count: int | None) -> tuple[int, ...]:
    """Whole numbers with commas or blanks between them; `count` of them, or any number."""
    try:
        numbers = tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        raise FractalError(f"{what}: {error}; give whole numbers with commas") from error
    if count is not None and len(numbers) != count:
        raise FractalError(f"{what} {text!r} has {len(numbers)} numbers: give {count}")
    return numbers


def _require_png(out: Path) -> None:
    if out.suffix.lower() != ".png":
        raise FractalError(
            f"--out {out} is no PNG file: name it .png, other formats would change known pixels"
        )


def _require_one_mask(
    mask: Path | None, box: str | None, uncrop: float | None, outside: bool
) -> None:
    given = [
        name
        for name, value in (("--mask", mask), ("--box", box), ("--uncrop", uncrop))
        if value is not None
    ]
    if len(given) != 1:
        raise FractalError(
            f"{' and '.join(given) or 'nothing'} says what to generate: give one of --mask, --box "
            f"and --uncrop"
        )
    if outside and box is None:
        raise FractalError("--outside is given without a box: say what to keep with --box")


def _write_variants(images: Tensor, labels: list[int], seeds: list[int], out: Path) -> list[Path]:
    from fractal_model.images import save_png

    if len(images) == 1:
        return [save_png(images[0], out)]
    n = len(images) // len(labels)
    names = [f"{'none' if c < 0 else c}" for c in labels for _ in range(n)]
    files = [
        out.with_stem(f"{out.stem}-class{name}-seed{seed}")
        for name, seed in zip(names, seeds, strict=True)
    ]
    return [save_png(image, file) for image, file in zip(images, files, strict=True)]


def _summary(files: list[Path]) -> str:
    if len(files) == 1:
        return str(files[0])
    return f"{len(files)} variants, {files[0]} … {files[-1].name}"


def animate(
    model: ModelOption,
    classes: ClassesOption,
    out: Annotated[Path, typer.Option(help="The animation to write: .gif or .webp.")],
    sheet: Annotated[
        Path | None,
        typer.Option(help="The still picture of some of its moments, PNG. Default: beside --out."),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the first class's image; the next has one more.")
    ] = 0,
    frames: Annotated[int, typer.Option(help="Frames at most; steps are thinned evenly.")] = 120,
    size: SizeOption = None,
    guidance: GuidanceOption = None,
    logit_scale: LogitScaleOption = None,
    iterations: IterationsOption = None,
    order: OrderOption = None,
    params: ParamsOption = DEFAULT_FILE,
) -> None:
    """Watch images grow: patch by patch, and inside each patch down to its pixels.

    Patches being worked on are outlined: orange for the first level's, blue and green for those
    inside them. Several classes grow side by side.
    """
    import torch

    from fractal_model import animation
    from fractal_model.classes import parse_classes
    from fractal_model.model_source import load_model

    sheet = sheet or out.with_suffix(".png")
    animation.require_animation(out, sheet, frames=frames, images=len(classes.split(",")))
    file = load_params(params)
    loaded = load_model(model, file.paths.outputs)
    settings = sampling_settings(
        file,
        loaded.config,
        size,
        guidance=guidance,
        logit_scale=logit_scale,
        iterations=iterations,
        order=order,
    )
    labels = torch.tensor(parse_classes(classes, loaded.config))
    seeds = range(seed, seed + len(labels))
    with progress_bar("generating, %", 100) as update:
        written = animation.animate(
            loaded, labels, seeds, settings, out, sheet=sheet, frames=frames, progress=update
        )
    for path in written:
        say(f"{path}: {path.stat().st_size / 1000:.0f} kB")
