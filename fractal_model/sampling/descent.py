"""Sampling of one batch: the recursion from the class down to the pixels (paper, section 4).

Decided here: all patches of all images that are sampled in the same step run as one batch. Known
pixels are context. A MAR level reads them on all sides. An AR level is causal, so a sub-patch
depends only on the known pixels before it.

Shapes: B images, G branches (2 with guidance: conditional rows, then null rows), R rows of side P,
T sub-patches of side p, N sub-patches sampled in one step, n conditions of each, D their width.
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
from fractal_model.sampling.masked import MaskedIterations, MaskedRows
from fractal_model.sampling.schedules import guidance_at, masking_schedules
from fractal_model.sampling.steps import LevelSteps, PixelSteps
from fractal_model.sampling.values import Draw, guided_logits

Observer = Callable[[int, Rows, Tensor, Tensor], None]
"""Function that is called when a level begins its rows and after each of the level's steps. It
gets, and must not change, the level's number, its rows, the mask of hidden sub-patches (R, T), and
the canvas (R, T, 3, p, p), which holds the sub-patches sampled so far."""


@dataclass(frozen=True)
class StepFunctions:
    """The functions that sample AR levels (`level`), MAR levels (`masked`) and pixels (`pixel`),
    and draw values from logits (`draw`). Either all of the first three use caches, or none does."""

    level: Callable[[ARLevel, Conditions, int], LevelSteps]
    masked: Callable[[MaskedRows], MaskedIterations]
    pixel: Callable[[PixelNetwork, Tensor, int], PixelSteps]
    draw: Draw
    innermost: CompiledPixels | None = None
    """Compiled sampler of the innermost AR level together with its pixels. With None, `level` and
    `pixel` sample them."""
    channels: CompiledChannels | None = None
    """Compiled sampler of single pixels, for pixels below a MAR level. With None, `pixel` samples
    them."""


class _Step(NamedTuple):
    """One sampling step of an AR level, or one iteration of a MAR level."""

    drawn: Tensor
    """True for each sub-patch that this step samples, (R, T) bool."""
    hidden: Tensor
    """True for each sub-patch that is not sampled yet after this step, (R, T) bool."""
    conditions: Conditions
    """Conditions (G · N, n, D) of the N sub-patches that this step samples, in each branch."""
    progress: Sequence[float]
    """Progress of each image after this step, 0 … 1. At level 0 it sets the guidance; the levels
    below do not use it."""


@dataclass
class Descent:
    """The sampling of one batch, level by level. Its fields are what all levels and rows share."""

    model: FractalModel
    settings: SamplingConfig
    iterations: tuple[int, ...]
    """Number of iterations of each MAR level, or of steps of each AR level."""
    steps: StepFunctions
    noise: ImageNoise
    known: Sequence[KnownPatches]
    """Known pixels, one entry per level; empty if no pixel is known."""
    observe: Observer | None
    branches: int
    """Number of branches: 2 with guidance, otherwise 1."""

    def generate_patches(
        self, i: int, conditions: Conditions, rows: Rows, guidance: Tensor | None
    ) -> Tensor:
        """Sample the patches of level i, (R, 3, P, P) uint8, or pixels if i follows the last level.
        `guidance` (R,) is the guidance of each row, which level 0 has chosen. It is None at level 0
        itself, and if there are no null rows."""
        if i == len(self.model.levels):
            return self._sample_pixels(conditions, rows, guidance)
        level = self.model.levels[i]
        canvas, hidden = self._canvas(i, level, rows)
        if self.observe is not None:
            self.observe(i, rows, hidden, canvas)
        is_last = i == len(self.model.levels) - 1
        can_be_compiled = is_last and not self.known and self.observe is None
        if can_be_compiled and self.steps.innermost is not None:
            uniforms = self._pixel_noise(rows.sub_patches(hidden, 1)).view(*hidden.shape, -1)
            values = self.steps.innermost(conditions, uniforms, guidance)
            return unpatchify(values[..., None, None])
        if isinstance(level, ARLevel):
            steps = self._autoregressive_steps(level, canvas, hidden, conditions)
        else:
            steps = self._masked_steps(i, level, canvas, hidden, conditions, rows, guidance)
        for step in steps:
            scale = self._guidance(step.progress) if i == 0 else guidance
            if scale is not None:
                scale = scale[:, None].expand_as(step.drawn)[step.drawn]
            inner = rows.sub_patches(step.drawn, level.config.sub_patch_size)
            canvas[step.drawn] = self.generate_patches(i + 1, step.conditions, inner, scale)
            if self.observe is not None:
                self.observe(i, rows, step.hidden, canvas)
        return unpatchify(canvas)

    def _autoregressive_steps(
        self, level: ARLevel, canvas: Tensor, hidden: Tensor, conditions: Conditions
    ) -> Iterator[_Step]:
        """Yield the steps of an AR level in raster order, one for each sub-patch that is hidden in
        at least one row."""
        compute = self.steps.level(level, conditions, self.branches)
        tokens = hidden.any(0).nonzero().flatten().tolist()
        for t in range(tokens[-1] + 1 if tokens else 0):
            outputs = compute(canvas, t)
            if t not in tokens:
                continue
            drawn = torch.zeros_like(hidden)
            drawn[:, t] = hidden[:, t]
            outputs = Conditions(outputs.values_NCD[hidden[:, t].repeat(self.branches)])
            hidden = hidden & ~drawn
            yield _Step(drawn, hidden, outputs, [(t + 1) / level.config.tokens] * len(canvas))

    def _masked_steps(
        self,
        i: int,
        level: MARLevel,
        canvas: Tensor,
        mask: Tensor,
        conditions: Conditions,
        rows: Rows,
        guidance: Tensor | None,
    ) -> Iterator[_Step]:
        """Yield the iterations of MAR level i. Each samples the hidden sub-patches with the highest
        scores in `noise.orders`."""
        numbers, guides = self._patch_numbers(level, rows), None
        if level.config.guiding_pixel:
            uniforms = _noise_at(self.noise.guides[i], numbers)
            values = self._draw_values(level.guide_network, conditions, uniforms, guidance)
            guides = values.float().repeat(self.branches, 1)
        count, even = self.model.config.conditions_read(i), not self.known
        compute = self.steps.masked(
            MaskedRows(level, conditions, guides, self.branches, count=count, even=even)
        )
        # Known sub-patches get the highest ranks, as if they had been sampled first.
        rank = ranks(torch.where(mask, _noise_at(self.noise.orders[i], numbers), math.inf))
        for remaining in masking_schedules(mask.sum(1), self.iterations[i]):
            hidden = rank < remaining[:, None]
            drawn = mask & ~hidden
            outputs = compute(canvas, mask, drawn)
            mask, progress = hidden, []
            if i == 0:
                # As published, the last iteration's guidance counts one sub-patch as still masked.
                tokens = level.config.tokens
                progress = [(tokens - n) / tokens for n in remaining.clamp(min=1).tolist()]
            yield _Step(drawn, mask, outputs, progress)

    def _sample_pixels(self, conditions: Conditions, rows: Rows, guidance: Tensor | None) -> Tensor:
        """Sample the values of R rows that are single pixels, (R, 3, 1, 1) uint8."""
        uniforms = self._pixel_noise(rows)
        if self.steps.channels is not None:
            values = self.steps.channels(conditions.middle, uniforms, guidance)
        else:
            values = self._draw_values(self.model.pixel, conditions, uniforms, guidance)
        return values.to(torch.uint8)[..., None, None]

    def _draw_values(
        self, network: PixelNetwork, conditions: Conditions, noise: Tensor, guidance: Tensor | None
    ) -> Tensor:
        """Draw the values of pixels or guiding pixels, (R, 3) int64. `noise` (R, 3) has the uniform
        random number for each draw."""
        values = torch.zeros(noise.shape, dtype=torch.long, device=noise.device)
        compute = self.steps.pixel(network, conditions.middle, self.branches)
        scale = None if guidance is None else guidance[:, None]
        for channel in range(values.shape[1]):
            logits = guided_logits(compute(values, channel), scale, self.settings)
            values[:, channel] = self.steps.draw(logits, noise[:, channel])
        return values

    def _canvas(self, i: int, level: ARLevel | MARLevel, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the canvas (R, T, 3, p, p) that level i fills, with the known pixels and 0
        elsewhere, and a mask (R, T), True where a sub-patch is hidden."""
        if self.known:
            numbers = self._patch_numbers(level, rows)
            return self.known[i].tokens[numbers], self.known[i].hidden[numbers]
        size, shape = level.config.sub_patch_size, (len(rows.image), level.config.tokens)
        canvas = rows.image.new_zeros(*shape, 3, size, size, dtype=torch.uint8)
        return canvas, rows.image.new_ones(shape, dtype=torch.bool)

    def _guidance(self, progress: Sequence[float]) -> Tensor | None:
        """Return the guidance (B,) of a step at level 0 from each image's `progress`, or None if
        there are no null rows. The levels below use the same guidance."""
        if self.branches == 1:
            return None
        scales = [guidance_at(done, self.settings.guidance) for done in progress]
        return torch.tensor(scales, device=self.noise.pixels.device)

    def _patch_numbers(self, level: ARLevel | MARLevel, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return two tensors (R,): the number of each row's image in the batch, and the number of
        the row's patch among all patches of `level` in its image."""
        return rows.image, rows.index(self.model.config.image_size, level.config.patch_size)

    def _pixel_noise(self, rows: Rows) -> Tensor:
        """Return the uniform random numbers (R, 3) for rows that are pixels."""
        return self.noise.pixels[rows.image, rows.index(self.model.config.image_size, 1)]


def _noise_at(noise: Tensor | None, numbers: tuple[Tensor, Tensor]) -> Tensor:
    """Return the random numbers (R, …) of R rows from `noise` (B, patches, …), which has those of
    all patches of a level. `numbers` has each row's image and patch (see `_patch_numbers`)."""
    assert noise is not None  # `ImageNoise.draw` draws them for this kind of level.
    return noise[numbers]
