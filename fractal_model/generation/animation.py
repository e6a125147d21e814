"""Animations of the sampling of images, patch by patch down to the pixels (paper, Fig. 1).

Decided here: a snapshot is taken after each iteration of the last level above the pixels. Patches
that are being generated are outlined in the colour of their level, and pixels not yet generated are
grey. Snapshots have the model's resolution. Every second one is dropped when they are too many or
more than half a gigabyte. Pictures are at most about 1000 pixels wide.

Shapes: B images of side S.
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
"""Colours of the outlines of patches, for levels 1, 2 and 3; level 4 has the first colour again."""
SECONDS, LAST_SECONDS = 10, 2
"""Approximate duration of a whole animation, and duration of its last frame, in seconds."""


@dataclass(frozen=True)
class Snapshot:
    """The B images of an animation at one moment of their generation."""

    images: Tensor
    """The images so far, (B, 3, S, S) uint8. The values of hidden pixels have no meaning."""
    hidden: Tensor
    """True where a pixel is hidden, that is, not generated yet; (B, S, S) bool."""
    boxes: tuple[tuple[int, int, Rows], ...]
    """The patches that are being generated, one entry for each level: the level's number, the side
    of its patches in pixels, and the positions of these patches in the images."""


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
        final = Sampler(model, settings)(labels, seeds, observe=recorder)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise FractalError(
            f"{len(labels)} images side by side do not fit into memory: ask for fewer images"
        ) from error
    snapshots = recorder.select_snapshots(final.cpu())
    for target in (file, sheet):
        target.parent.mkdir(parents=True, exist_ok=True)
    patch = model.config.levels[0].sub_patch_size
    with atomic_file(file) as partial:
        _save_animation(snapshots, patch, partial)
    with atomic_file(sheet) as partial:
        _sheet(snapshots, patch).save(partial)
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
    """Observer that a sampler calls with its progress. It keeps snapshots: at most two for each of
    the animation's `frames`, and at most half a gigabyte."""

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
        self._snapshots: list[Snapshot] = []
        self._seen, self._every = 0, 1

    def __call__(self, level: int, rows: Rows, hidden: Tensor, canvas: Tensor) -> None:
        rows = Rows(rows.image.cpu(), rows.top.cpu(), rows.left.cpu())
        self._write(rows, hidden.cpu(), canvas.cpu())
        self._boxes = [box for box in self._boxes if box[0] < level]
        if level > 0:
            side = canvas.shape[-1] * round(canvas.shape[1] ** 0.5)
            self._boxes.append((level, side, rows))
        if level == self._last_level or not self._snapshots:
            self._take_snapshot()

    def select_snapshots(self, final: Tensor) -> list[Snapshot]:
        """Return at most one snapshot for each frame, evenly spaced; the last one shows `final`."""
        last = Snapshot(final, torch.zeros_like(self._hidden), ())
        return [*_select_evenly(self._snapshots, self._frames - 1), last]

    def _write(self, rows: Rows, hidden: Tensor, canvas: Tensor) -> None:
        by_pixel = hidden[:, :, None, None, None].expand(-1, -1, 1, *canvas.shape[-2:])
        patches, hidden = unpatchify(canvas), unpatchify(by_pixel)[:, 0]
        along = torch.arange(patches.shape[-1])
        image = rows.image[:, None, None]
        y = (rows.top[:, None] + along)[:, :, None]
        x = (rows.left[:, None] + along)[:, None, :]
        self._images.permute(0, 2, 3, 1)[image, y, x] = patches.permute(0, 2, 3, 1)
        self._hidden[image, y, x] = hidden

    def _take_snapshot(self) -> None:
        if self._seen % self._every == 0:
            images, hidden = self._images.clone(), self._hidden.clone()
            self._snapshots.append(Snapshot(images, hidden, tuple(self._boxes)))
        self._seen += 1
        if len(self._snapshots) > self._most:
            self._snapshots, self._every = self._snapshots[::2], 2 * self._every
        self._progress(round(100 * (1 - self._hidden.float().mean().item())))


def _select_evenly(snapshots: list[Snapshot], count: int) -> list[Snapshot]:
    """Select `count` evenly spaced snapshots with the first and last; all if there are fewer."""
    if len(snapshots) <= count:
        return snapshots
    places = torch.linspace(0, len(snapshots) - 1, count).round().int()
    return [snapshots[place] for place in places.tolist()]


def _save_animation(snapshots: list[Snapshot], patch: int, file: Path) -> None:
    images, side = snapshots[0].images.shape[0], snapshots[0].images.shape[-1]
    columns = images if images <= 4 else math.ceil(images**0.5)
    scale = max(1, min(TILE_PIXELS, PICTURE_PIXELS // columns) // side)
    pictures = [
        _arrange([_tile(snapshot, b, scale, patch) for b in range(images)], columns)
        for snapshot in snapshots
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


def _sheet(snapshots: list[Snapshot], patch: int) -> Image.Image:
    """Draw the still picture: one row for each image, with its snapshots from first to last."""
    columns = _select_evenly(snapshots, SHEET_COLUMNS)
    scale = max(1, SHEET_TILE_PIXELS // snapshots[0].images.shape[-1])
    images = snapshots[0].images.shape[0]
    tiles = [_tile(snapshot, b, scale, patch) for b in range(images) for snapshot in columns]
    return _arrange(tiles, len(columns))


def _tile(snapshot: Snapshot, b: int, scale: int, patch: int) -> Image.Image:
    """Draw image `b` of a snapshot, enlarged `scale` times, with outlines of the patches being
    generated. Hidden pixels show a grid of squares of side `patch`."""
    hidden = enlarge(snapshot.hidden[b], scale)
    pixels = enlarge(snapshot.images[b], scale)
    pixels = torch.where(hidden, _background(hidden.shape[-1], patch * scale), pixels)
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    draw = ImageDraw.Draw(picture)
    for level, side, rows in snapshot.boxes:
        width = max(1, min(4, side * scale // 16))
        for index in (rows.image == b).nonzero().flatten().tolist():
            top, left = rows.top[index].item() * scale, rows.left[index].item() * scale
            corners = (left, top, left + side * scale - 1, top + side * scale - 1)
            draw.rectangle(corners, outline=OUTLINES[(level - 1) % len(OUTLINES)], width=width)
    return picture


def _background(side: int, patch: int) -> Tensor:
    """Return a picture of hidden pixels, (3, side, side): grey with a line every `patch` pixels."""
    along = torch.arange(side) % patch
    lines = (along[:, None] == 0) | (along[None, :] == 0)
    tones = torch.tensor([NOT_GENERATED, GRID_LINES], dtype=torch.uint8)
    return tones[lines.long()].permute(2, 0, 1)


def _arrange(tiles: list[Image.Image], columns: int) -> Image.Image:
    rows, step = math.ceil(len(tiles) / columns), tiles[0].width + GAP
    picture = Image.new("RGB", (columns * step + GAP, rows * step + GAP), "white")
    for place, tile in enumerate(tiles):
        picture.paste(tile, (GAP + place % columns * step, GAP + place // columns * step))
    return picture


GROWING_IMAGES = 3


def write_growth_animation(
    model: FractalModel, sampling: SamplingConfig, settings: EvaluationConfig, folder: Path
) -> tuple[Path, Path]:
    """Write an animation to `folder`, and a still picture of some moments. They show one image for
    each of the first three classes, with the seeds from `settings.seed` on. Return both paths."""
    labels = torch.arange(min(GROWING_IMAGES, model.config.num_classes))
    seeds = range(settings.seed, settings.seed + len(labels))
    return animate(model, labels, seeds, sampling, folder / "growth.gif")
