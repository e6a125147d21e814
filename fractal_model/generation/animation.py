"""The generation as pictures: the image filling patch by patch, down to the pixels (paper, Fig. 1).

Decided here: a frame shows the steps of the last level above the pixels; patches that are being
worked on are outlined in a colour of their level; what is not generated yet has a tone of its own.
Snapshots are kept at the model's resolution and thinned as they come, so memory does not grow with
the number of steps or beyond half a gigabyte; pictures are at most about 1000 pixels wide.

Shapes: B images of side S, R rows of a level.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fractal_model.common.errors import FractalError
from fractal_model.common.files import atomic_file
from fractal_model.config.evaluation import EvaluationConfig
from fractal_model.config.sampling import SamplingConfig
from fractal_model.generation.pictures import NOT_GENERATED, enlarge
from fractal_model.model.fractal import FractalModel, Rows
from fractal_model.model.patches import unpatchify
from fractal_model.parallel.parts import is_out_of_memory
from fractal_model.sampling.sampler import Sampler

SUFFIXES = (".gif", ".webp")
MOST_FRAMES, MOST_IMAGES, MOST_BYTES = 300, 16, 2**29
PICTURE_PIXELS, TILE_PIXELS, SHEET_TILE_PIXELS, SHEET_COLUMNS = 960, 320, 96, 10
GAP = 6
GRID_LINES = (178, 186, 199)
OUTLINES = ((255, 122, 0), (0, 140, 255), (0, 170, 90))
"""Of the patches at work, from the second level down."""
SECONDS, LAST_SECONDS = 10, 2


@dataclass(frozen=True)
class Snapshot:
    """A moment of the generation."""

    images: Tensor
    """(B, 3, S, S) uint8"""
    hidden: Tensor
    """(B, S, S) bool, true where the pixel is not generated yet."""
    boxes: tuple[tuple[int, int, Rows], ...]
    """The patches at work: level, side in pixels, and where they are."""


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
    """Generate B images side by side and write the animation, GIF or WebP by `file`'s suffix, and
    a still sheet of some of its moments, PNG (by default beside it). Returns both files.

    FractalError: another suffix, too few or too many frames or images, more than fit the memory.
    """
    sheet = sheet or file.with_suffix(".png")
    require_animation(file, sheet, frames=frames, images=len(labels))
    recorder = _Recorder(model, len(labels), frames, progress)
    try:
        final = Sampler(model, settings)(labels, seeds, observe=recorder)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise FractalError(
            f"{len(labels)} images side by side do not fit the memory: ask for fewer"
        ) from error
    moments = recorder.moments(final.cpu())
    for target in (file, sheet):
        target.parent.mkdir(parents=True, exist_ok=True)
    patch = model.config.levels[0].sub_patch_size
    with atomic_file(file) as partial:
        _save_animation(moments, patch, partial)
    with atomic_file(sheet) as partial:
        _sheet(moments, patch).save(partial)
    return file, sheet


def require_animation(file: Path, sheet: Path, *, frames: int, images: int) -> None:
    """FractalError: these files cannot be written so."""
    if file.suffix.lower() not in SUFFIXES:
        raise FractalError(f"an animation cannot be {file}: name it {' or '.join(SUFFIXES)}")
    if sheet.suffix.lower() != ".png":
        raise FractalError(f"the sheet of an animation cannot be {sheet}: name it .png")
    if not 2 <= frames <= MOST_FRAMES:
        raise FractalError(f"frames is {frames}: give 2 … {MOST_FRAMES}")
    if not 1 <= images <= MOST_IMAGES:
        raise FractalError(f"{images} images asked for side by side: give 1 … {MOST_IMAGES}")


class _Recorder:
    """The sampler's observer: keeps at most twice as many snapshots as frames are wanted, fewer
    where they would be too large."""

    def __init__(
        self, model: FractalModel, images: int, frames: int, progress: Callable[[int], None]
    ) -> None:
        side = model.config.image_size
        self._last_level = len(model.levels) - 1
        self._images = torch.zeros(images, 3, side, side, dtype=torch.uint8)
        self._hidden = torch.ones(images, side, side, dtype=torch.bool)
        self._boxes: list[tuple[int, int, Rows]] = []
        self._frames = frames
        snapshot_bytes = self._images.nbytes + self._hidden.nbytes
        self._most = min(2 * frames, MOST_BYTES // snapshot_bytes)
        self._progress = progress
        self._kept: list[Snapshot] = []
        self._seen, self._every = 0, 1

    def __call__(self, level: int, rows: Rows, hidden: Tensor, canvas: Tensor) -> None:
        rows = Rows(rows.image.cpu(), rows.top.cpu(), rows.left.cpu())
        self._write(rows, hidden.cpu(), canvas.cpu())
        self._boxes = [box for box in self._boxes if box[0] < level]
        if level > 0:
            side = canvas.shape[-1] * round(canvas.shape[1] ** 0.5)
            self._boxes.append((level, side, rows))
        if level == self._last_level or not self._kept:
            self._keep()

    def moments(self, final: Tensor) -> list[Snapshot]:
        """As many as frames are wanted, evenly spaced, the last one the finished images."""
        last = Snapshot(final, torch.zeros_like(self._hidden), ())
        return [*_evenly(self._kept, self._frames - 1), last]

    def _write(self, rows: Rows, hidden: Tensor, canvas: Tensor) -> None:
        shown = hidden[:, :, None, None, None].expand(-1, -1, 1, *canvas.shape[-2:])
        patches, gaps = unpatchify(canvas), unpatchify(shown)[:, 0]
        along = torch.arange(patches.shape[-1])
        image = rows.image[:, None, None]
        y = (rows.top[:, None] + along)[:, :, None]
        x = (rows.left[:, None] + along)[:, None, :]
        self._images.permute(0, 2, 3, 1)[image, y, x] = patches.permute(0, 2, 3, 1)
        self._hidden[image, y, x] = gaps

    def _keep(self) -> None:
        if self._seen % self._every == 0:
            images, hidden = self._images.clone(), self._hidden.clone()
            self._kept.append(Snapshot(images, hidden, tuple(self._boxes)))
        self._seen += 1
        if len(self._kept) > self._most:
            self._kept, self._every = self._kept[::2], 2 * self._every
        self._progress(round(100 * (1 - self._hidden.float().mean().item())))


def _evenly(moments: list[Snapshot], count: int) -> list[Snapshot]:
    """`count` of them, or all, the first and the last among them where there is room."""
    if len(moments) <= count:
        return moments
    places = torch.linspace(0, len(moments) - 1, count).round().int()
    return [moments[place] for place in places.tolist()]


def _save_animation(moments: list[Snapshot], patch: int, file: Path) -> None:
    images, side = moments[0].images.shape[0], moments[0].images.shape[-1]
    columns = images if images <= 4 else math.ceil(images**0.5)
    scale = max(1, min(TILE_PIXELS, PICTURE_PIXELS // columns) // side)
    pictures = [
        _tiled([_tile(moment, b, scale, patch) for b in range(images)], columns)
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
    """One palette for all frames, so that they do not flicker: the finished picture's colours, and
    those that only the way there has."""
    own = (NOT_GENERATED, GRID_LINES, *OUTLINES)
    colours = finished.quantize(256 - len(own)).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([value for colour in own for value in colour] + colours)
    return palette


def _sheet(moments: list[Snapshot], patch: int) -> Image.Image:
    """A row an image, from its first moment to its last."""
    chosen = _evenly(moments, SHEET_COLUMNS)
    scale = max(1, SHEET_TILE_PIXELS // moments[0].images.shape[-1])
    images = moments[0].images.shape[0]
    tiles = [_tile(moment, b, scale, patch) for b in range(images) for moment in chosen]
    return _tiled(tiles, len(chosen))


def _tile(moment: Snapshot, b: int, scale: int, patch: int) -> Image.Image:
    """One image at one moment, enlarged, with the patches at work outlined."""
    hidden = enlarge(moment.hidden[b], scale)
    pixels = enlarge(moment.images[b], scale)
    pixels = torch.where(hidden, _background(hidden.shape[-1], patch * scale), pixels)
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    draw = ImageDraw.Draw(picture)
    for level, side, rows in moment.boxes:
        width = max(1, min(4, side * scale // 16))
        for index in (rows.image == b).nonzero().flatten().tolist():
            top, left = rows.top[index].item() * scale, rows.left[index].item() * scale
            corners = (left, top, left + side * scale - 1, top + side * scale - 1)
            draw.rectangle(corners, outline=OUTLINES[(level - 1) % len(OUTLINES)], width=width)
    return picture


def _background(side: int, patch: int) -> Tensor:
    """(3, side, side): the tone of what is not generated, with the first level's grid on it."""
    along = torch.arange(side) % patch
    lines = (along[:, None] == 0) | (along[None, :] == 0)
    tones = torch.tensor([NOT_GENERATED, GRID_LINES], dtype=torch.uint8)
    return tones[lines.long()].permute(2, 0, 1)


def _tiled(tiles: list[Image.Image], columns: int) -> Image.Image:
    rows, step = math.ceil(len(tiles) / columns), tiles[0].width + GAP
    picture = Image.new("RGB", (columns * step + GAP, rows * step + GAP), "white")
    for place, tile in enumerate(tiles):
        picture.paste(tile, (GAP + place % columns * step, GAP + place // columns * step))
    return picture


GROWING_IMAGES = 3


def write_growth_animation(
    model: FractalModel, sampling: SamplingConfig, settings: EvaluationConfig, folder: Path
) -> tuple[Path, Path]:
    """An animation of the generation of the first classes' images, and a still sheet of it."""
    labels = torch.arange(min(GROWING_IMAGES, model.config.num_classes))
    seeds = range(settings.seed, settings.seed + len(labels))
    return animate(model, labels, seeds, sampling, folder / "growth.gif")
