"""Sampling of one batch: the recursion from the class down to the pixels (paper, section 4).

Decided here: the rows of all images and all patches of one iteration run as one batch. Known pixels
are context: for a MAR level on all sides, for an AR level (causal) those in sub-patches before the
one at hand; later ones stay as they are and condition only what comes after them.

Shapes: B images, G branches (2 with guidance: conditional rows, then null rows), R rows, T
sub-patches of side p, N of them handed on.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fractal_model.config.sampling import SamplingConfig
from fractal_model.model.ar import ARLevel
from fractal_model.model.conditions import Conditions
from fractal_model.model.fractal import FractalModel, Rows
from fractal_model.model.mar import MARLevel
from fractal_model.model.patches import unpatchify
from fractal_model.model.pixel import PixelNetwork
from fractal_model.model.randomness import ImageNoise, ranks
from fractal_model.sampling.compiled import CompiledChannels, CompiledPixels
from fractal_model.sampling.known import KnownPatches
from fractal_model.sampling.masked import MaskedRows, MaskedSteps
from fractal_model.sampling.schedules import guidance_at, masking_schedules
from fractal_model.sampling.steps import LevelSteps, PixelSteps
from fractal_model.sampling.values import Draw, guided_logits

Observer = Callable[[int, Rows, Tensor, Tensor], None]
"""Called when a level begins its rows and after each of its steps, with the level's number, its
rows, what is hidden (R, T) bool, and the canvas (R, T, 3, p, p) uint8. It must not change them."""


@dataclass(frozen=True)
class Steps:
    """How the parts of a model are stepped, and values drawn."""

    level: Callable[[ARLevel, Conditions, int], LevelSteps]
    masked: Callable[[MaskedRows], MaskedSteps]
    pixel: Callable[[PixelNetwork, Tensor, int], PixelSteps]
    draw: Draw
    innermost: CompiledPixels | None = None
    """The innermost AR level and its pixels, where these are compiled as one."""
    channels: CompiledChannels | None = None
    """The pixels, where these are compiled alone."""


class _Step(NamedTuple):
    """One iteration of a level."""

    drawn: Tensor
    """(R, T) bool: the sub-patches that it generates."""
    hidden: Tensor
    """(R, T) bool: those that it leaves."""
    conditions: Conditions
    """(G · N, n, D) of those that it generates."""
    progress: Sequence[float]
    """Of each image after it, for the guidance; at level 0 alone."""


@dataclass
class Descent:
    """One batch on its way down, with what is the same for all its rows."""

    model: FractalModel
    settings: SamplingConfig
    iterations: tuple[int, ...]
    """Of each level."""
    steps: Steps
    noise: ImageNoise
    known: Sequence[KnownPatches]
    """Of each level; empty where no pixel is known."""
    observe: Observer | None
    branches: int

    def generate_patches(
        self, i: int, conditions: Conditions, rows: Rows, guidance: Tensor | None
    ) -> Tensor:
        """(R, 3, P, P) uint8 for the rows of level i; past the last level these are pixels.

        `guidance` (R,) is what level 0 gave the rows, None at level 0 and without null rows.
        """
        if i == len(self.model.levels):
            return self._pixels(conditions, rows, guidance)
        level = self.model.levels[i]
        canvas, hidden = self._start(i, level, rows)
        if self.observe is not None:
            self.observe(i, rows, hidden, canvas)
        is_whole = i == len(self.model.levels) - 1 and not self.known and self.observe is None
        if is_whole and self.steps.innermost is not None:
            uniforms = self._pixel_noise(rows.sub_patches(hidden, 1)).view(*hidden.shape, -1)
            values = self.steps.innermost(conditions, uniforms, guidance)
            return unpatchify(values[..., None, None])
        if isinstance(level, ARLevel):
            steps = self._autoregressive(i, level, canvas, hidden, conditions)
        else:
            steps = self._masked(i, level, canvas, hidden, conditions, rows, guidance)
        for step in steps:
            inner = self._guidance(step.progress) if i == 0 else guidance
            if inner is not None:
                inner = inner[:, None].expand_as(step.drawn)[step.drawn]
            children = rows.sub_patches(step.drawn, level.config.sub_patch_size)
            canvas[step.drawn] = self.generate_patches(i + 1, step.conditions, children, inner)
            if self.observe is not None:
                self.observe(i, rows, step.hidden, canvas)
        return unpatchify(canvas)

    def _autoregressive(
        self, i: int, level: ARLevel, canvas: Tensor, hidden: Tensor, conditions: Conditions
    ) -> Iterator[_Step]:
        """One sub-patch after the other, in raster order; the known ones are skipped."""
        compute = self.steps.level(level, conditions, self.branches)
        places = hidden.any(0).nonzero().flatten().tolist()
        for t in range(places[-1] + 1 if places else 0):
            handed_on = compute(canvas, t)
            if t not in places:
                continue
            drawn = torch.zeros_like(hidden)
            drawn[:, t] = hidden[:, t]
            handed_on = Conditions(handed_on.values_NCD[hidden[:, t].repeat(self.branches)])
            hidden = hidden & ~drawn
            yield _Step(drawn, hidden, handed_on, [(t + 1) / level.config.tokens] * len(canvas))

    def _masked(
        self,
        i: int,
        level: MARLevel,
        canvas: Tensor,
        mask: Tensor,
        conditions: Conditions,
        rows: Rows,
        guidance: Tensor | None,
    ) -> Iterator[_Step]:
        """Some sub-patches at a time, in the order of the images' scores."""
        places, guides = self._places(level, rows), None
        if level.config.guiding_pixel:
            uniforms = _at(self.noise.guides[i], places)
            values = self._values(level.guide_network, conditions, uniforms, guidance)
            guides = values.float().repeat(self.branches, 1)
        read, even = self.model.config.conditions_read(i), not self.known
        compute = self.steps.masked(
            MaskedRows(level, conditions, guides, self.branches, read=read, even=even)
        )
        # Known sub-patches rank above all hidden ones: they have come already.
        rank = ranks(torch.where(mask, _at(self.noise.orders[i], places), math.inf))
        for remaining in masking_schedules(mask.sum(1), self.iterations[i]):
            still = rank < remaining[:, None]
            drawn = mask & ~still
            handed_on = compute(canvas, mask, drawn)
            mask, progress = still, []
            if i == 0:
                # Published: for guidance the last step still counts one as masked.
                left, tokens = remaining.clamp(min=1).tolist(), level.config.tokens
                progress = [(tokens - n) / tokens for n in left]
            yield _Step(drawn, mask, handed_on, progress)

    def _pixels(self, conditions: Conditions, rows: Rows, guidance: Tensor | None) -> Tensor:
        """(R, 3, 1, 1) uint8."""
        uniforms = self._pixel_noise(rows)
        if self.steps.channels is not None:
            values = self.steps.channels(conditions.middle, uniforms, guidance)
        else:
            values = self._values(self.model.pixel, conditions, uniforms, guidance)
        return values.to(torch.uint8)[..., None, None]

    def _values(
        self,
        network: PixelNetwork,
        conditions: Conditions,
        uniforms: Tensor,
        guidance: Tensor | None,
    ) -> Tensor:
        """(R, 3) int64 values of pixels, or of guiding pixels."""
        values = torch.zeros(uniforms.shape, dtype=torch.long, device=uniforms.device)
        compute = self.steps.pixel(network, conditions.middle, self.branches)
        scale = None if guidance is None else guidance[:, None]
        for channel in range(values.shape[1]):
            logits = guided_logits(compute(values, channel), scale, self.settings)
            values[:, channel] = self.steps.draw(logits, uniforms[:, channel])
        return values

    def _start(self, i: int, level: ARLevel | MARLevel, rows: Rows) -> tuple[Tensor, Tensor]:
        """The canvas (R, T, 3, p, p) with what is known, and what is hidden (R, T)."""
        if self.known:
            places = self._places(level, rows)
            return self.known[i].tokens[places], self.known[i].hidden[places]
        size, shape = level.config.sub_patch_size, (len(rows.image), level.config.tokens)
        canvas = rows.image.new_zeros(*shape, 3, size, size, dtype=torch.uint8)
        return canvas, rows.image.new_ones(shape, dtype=torch.bool)

    def _guidance(self, progress: Sequence[float]) -> Tensor | None:
        """(B,) for a step of level 0; below it guidance stays what it was above."""
        if self.branches == 1:
            return None
        scales = [guidance_at(done, self.settings.guidance) for done in progress]
        return torch.tensor(scales, device=self.noise.pixels.device)

    def _places(self, level: ARLevel | MARLevel, rows: Rows) -> tuple[Tensor, Tensor]:
        """The image of each of a level's rows, and its number among the image's patches."""
        return rows.image, rows.index(self.model.config.image_size, level.config.patch_size)

    def _pixel_noise(self, rows: Rows) -> Tensor:
        """(R, 3) uniform numbers of rows that are pixels."""
        return self.noise.pixels[rows.image, rows.index(self.model.config.image_size, 1)]


def _at(noise: Tensor | None, places: tuple[Tensor, Tensor]) -> Tensor:
    """The rows at these places of a level's random numbers (B, Rᵢ, …)."""
    assert noise is not None  # drawn for this kind of level
    return noise[places]
