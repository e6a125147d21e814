"""Animations of the sampling of images, patch by patch down to the pixels (paper, Fig. 1).

Decided here: of the moments of the growth every second one is dropped when they are too many or
more than half a gigabyte. Pictures are at most about 1000 pixels wide.

Shapes: B images of side S.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fractal_model.common.errors import FractalError
from fractal_model.common.files import atomic_file
from fractal_model.config.evaluation import EvaluationConfig
from fractal_model.config.sampling import SamplingConfig
from fractal_model.generation.growth import GRID_LINES, OUTLINES, Growth, Moment, arrange, draw_tile
from fractal_model.generation.pictures import NOT_GENERATED
from fractal_model.model.fractal import FractalModel
from fractal_model.parallel.parts import is_out_of_memory
from fractal_model.sampling.sampler import Sampler

SUFFIXES = (".gif", ".webp")
MOST_FRAMES, MOST_IMAGES, MOST_BYTES = 300, 16, 2**29
PICTURE_PIXELS, TILE_PIXELS, SHEET_TILE_PIXELS, SHEET_COLUMNS = 960, 320, 96, 10
SECONDS, LAST_SECONDS = 10, 2
"""Approximate duration of a whole animation, and duration of its last frame, in seconds."""


def animate(
    model: FractalModel,
    labels: Tensor,
    seeds: Sequence[int],
    settings: SamplingConfig,
    file: Path,
    *,
    sheet: Path | None = None,
    frames: int = 120,
    progress: Callable[[int], None] = lambda percent: None,
) -> tuple[Path, Path]:
    """Generate one image for each of B `labels` and B `seeds`. Write an animation of all images
    side by side to `file`, as GIF or WebP by the suffix, and return both paths: `file` and `sheet`.

    `sheet` is a PNG file with a still picture of some moments, by default `file` with the suffix
    .png. `frames` is the number of the animation's frames. `progress` receives the percentage of
    pixels done. FractalError: a suffix, the number of frames or the number of images is not
    allowed, or the images do not fit into memory.
    """
    sheet = sheet or file.with_suffix(".png")
    require_animation(file, sheet, frames=frames, images=len(labels))
    recorder = _Recorder(model, len(labels), frames, progress)
    try:
        growth = Growth(model.config, len(labels), recorder)
        final = Sampler(model, settings)(labels, seeds, observe=growth)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise FractalError(
            f"{len(labels)} images side by side do not fit into memory: ask for fewer images"
        ) from error
    moments = recorder.select_moments(final.cpu())
    for target in (file, sheet):
        target.parent.mkdir(parents=True, exist_ok=True)
    patch = model.config.levels[0].sub_patch_size
    with atomic_file(file) as partial:
        _save_animation(moments, patch, partial)
    with atomic_file(sheet) as partial:
        _sheet(moments, patch).save(partial)
    return file, sheet


def require_animation(file: Path, sheet: Path, *, frames: int, images: int) -> None:
    """Raise FractalError if the suffix of `file` or `sheet`, or the number of frames or images, is
    not allowed."""
    if file.suffix.lower() not in SUFFIXES:
        raise FractalError(f"the animation {file} must end with {' or '.join(SUFFIXES)}: rename it")
    if sheet.suffix.lower() != ".png":
        raise FractalError(f"the sheet {sheet} of an animation must end with .png: rename it")
    if not 2 <= frames <= MOST_FRAMES:
        raise FractalError(f"frames is {frames}: give a number from 2 to {MOST_FRAMES}")
    if not 1 <= images <= MOST_IMAGES:
        raise FractalError(f"cannot show {images} images side by side: ask for 1 … {MOST_IMAGES}")


class _Recorder:
    """Keeps moments of the growth: at most two for each of the animation's `frames`, and at most
    half a gigabyte."""

    def __init__(
        self, model: FractalModel, images: int, frames: int, progress: Callable[[int], None]
    ) -> None:
        moment_bytes = images * model.config.image_size**2 * 4  # three colours and the mask
        self._frames = frames
        self._most = min(2 * frames, MOST_BYTES // moment_bytes)
        self._progress = progress
        self._moments: list[Moment] = []
        self._seen, self._every = 0, 1

    def __call__(self, moment: Moment) -> None:
        if self._seen % self._every == 0:
            self._moments.append(moment.copy())
        self._seen += 1
        if len(self._moments) > self._most:
            self._moments, self._every = self._moments[::2], 2 * self._every
        self._progress(round(100 * moment.share_done))

    def select_moments(self, final: Tensor) -> list[Moment]:
        """Return at most one moment for each frame, evenly spaced; the last one shows `final`."""
        last = Moment(final, torch.zeros_like(final[:, 0], dtype=torch.bool), ())
        return [*_select_evenly(self._moments, self._frames - 1), last]


def _select_evenly(moments: list[Moment], count: int) -> list[Moment]:
    """Select `count` evenly spaced moments with the first and last; all if there are fewer."""
    if len(moments) <= count:
        return moments
    places = torch.linspace(0, len(moments) - 1, count).round().int()
    return [moments[place] for place in places.tolist()]


def _save_animation(moments: list[Moment], patch: int, file: Path) -> None:
    images, side = moments[0].images.shape[0], moments[0].images.shape[-1]
    columns = images if images <= 4 else math.ceil(images**0.5)
    scale = max(1, min(TILE_PIXELS, PICTURE_PIXELS // columns) // side)
    pictures = [
        arrange([draw_tile(moment, b, scale, patch) for b in range(images)], columns)
        for moment in moments
    ]
    duration = [min(250, max(30, round(1000 * SECONDS / len(pictures))))] * len(pictures)
    duration[-1] = 1000 * LAST_SECONDS
    options: dict[str, Any] = {"save_all": True, "duration": duration, "loop": 0}
    if file.suffix.lower() == ".gif":
        palette = _palette(pictures[-1])
        pictures = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures]
    else:
        options["lossless"] = True
    pictures[0].save(file, append_images=pictures[1:], **options)


def _palette(finished: Image.Image) -> Image.Image:
    """Make one palette for all frames, so that colours do not flicker. It has the colours of the
    finished picture, of the outlines and of hidden pixels."""
    drawn = (NOT_GENERATED, GRID_LINES, *OUTLINES)
    colours = finished.quantize(256 - len(drawn)).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([value for colour in drawn for value in colour] + colours)
    return palette


def _sheet(moments: list[Moment], patch: int) -> Image.Image:
    """Draw the still picture: one row for each image, with its moments from first to last."""
    columns = _select_evenly(moments, SHEET_COLUMNS)
    scale = max(1, SHEET_TILE_PIXELS // moments[0].images.shape[-1])
    images = moments[0].images.shape[0]
    tiles = [draw_tile(moment, b, scale, patch) for b in range(images) for moment in columns]
    return arrange(tiles, len(columns))


GROWING_IMAGES = 3


def write_growth_animation(
    model: FractalModel, sampling: SamplingConfig, settings: EvaluationConfig, folder: Path
) -> tuple[Path, Path]:
    """Write an animation to `folder`, and a still picture of some moments. They show one image for
    each of the first three classes, with the seeds from `settings.seed` on. Return both paths."""
    labels = torch.arange(min(GROWING_IMAGES, model.config.num_classes))
    seeds = range(settings.seed, settings.seed + len(labels))
    return animate(model, labels, seeds, sampling, folder / "growth.gif")
