"""Sampling: the recursion from the class down to the pixels (paper, section 4).

Decided here: a sampler yields images and nothing else; the rows of all images and all patches of
one iteration run as one batch; every random number comes from the image's own seed.

Shapes: B images, G branches (2 with guidance: conditional rows, then null rows), R rows, T
sub-patches of side p.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fractal_model.errors import FractalError
from fractal_model.model.ar import ARLevel
from fractal_model.model.conditions import Conditions
from fractal_model.model.fractal import NO_CLASS, FractalModel, Rows
from fractal_model.model.mar import MARLevel
from fractal_model.model.pixel import PixelNetwork
from fractal_model.model.pixels import unpatchify
from fractal_model.randomness import ImageNoise, ranks
from fractal_model.sampling.reference import UncachedLevelSteps, UncachedPixelSteps
from fractal_model.sampling.settings import SamplingConfig, guidance_at, still_masked
from fractal_model.sampling.steps import CachedLevelSteps, CachedPixelSteps
from fractal_model.sampling.values import Draw, guided_logits, inverse_transform


class Sampler:
    """Draws images from a model: `sampler(labels, seeds)`.

    `cached=False` takes the slow reference path; `draw` replaces the random draw (parity cases).
    """

    def __init__(
        self,
        model: FractalModel,
        settings: SamplingConfig,
        *,
        cached: bool = True,
        draw: Draw = inverse_transform,
    ) -> None:
        self._model = model
        self._settings = settings
        self._iterations = settings.level_iterations(model.config)
        self._level_steps = CachedLevelSteps if cached else UncachedLevelSteps
        self._pixel_steps = CachedPixelSteps if cached else UncachedPixelSteps
        self._draw = draw

    @torch.no_grad()
    def __call__(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """(B,) classes, NO_CLASS for none, and B seeds to (B, 3, S, S) uint8 images."""
        if len(labels) != len(seeds):
            raise FractalError(f"{len(labels)} classes and {len(seeds)} seeds: give one each")
        noise = ImageNoise.draw(seeds, self._model.config, labels.device)
        return self.from_noise(labels, noise)

    @torch.no_grad()
    def from_noise(self, labels: Tensor, noise: ImageNoise) -> Tensor:
        """The same from random numbers that are given."""
        was_training = self._model.training
        self._model.eval()
        try:
            return _Run(self, labels, noise).patches(
                0, self._root(labels), Rows.whole_images(len(labels), labels.device), None
            )
        finally:
            self._model.train(was_training)

    def _root(self, labels: Tensor) -> Conditions:
        if self.guided(labels):
            labels = torch.cat([labels, torch.full_like(labels, NO_CLASS)])
        return self._model.root(labels)

    def guided(self, labels: Tensor) -> bool:
        """Whether null rows run beside the conditional ones; with guidance 1, or without any
        class, they would change nothing."""
        return self._settings.guidance != 1 and bool((labels != NO_CLASS).any())


class _Run:
    """One batch on its way down; holds what is the same for all its rows."""

    def __init__(self, sampler: Sampler, labels: Tensor, noise: ImageNoise) -> None:
        self._s = sampler
        self._noise = noise
        self._branches = 2 if sampler.guided(labels) else 1
        self._image_size = sampler._model.config.image_size

    def patches(self, i: int, conditions: Conditions, rows: Rows, guidance: float | None) -> Tensor:
        """(R, 3, P, P) uint8 for the rows of level i; past the last level these are pixels."""
        levels = self._s._model.levels
        if i == len(levels):
            uniforms = self._noise.pixels[rows.image, rows.index(self._image_size, 1)]
            values = self._values(self._s._model.pixel, conditions, uniforms, guidance)
            return values.to(torch.uint8)[..., None, None]
        if isinstance(levels[i], ARLevel):
            return self._autoregressive(i, levels[i], conditions, rows, guidance)
        return self._masked(i, levels[i], conditions, rows, guidance)

    def _autoregressive(
        self, i: int, level: ARLevel, conditions: Conditions, rows: Rows, guidance: float | None
    ) -> Tensor:
        canvas = self._canvas(level, rows)
        steps = self._s._level_steps(level, conditions, self._branches)
        for t in range(level.config.tokens):
            chosen = canvas.new_zeros(canvas.shape[:2], dtype=torch.bool)
            chosen[:, t] = True
            inner = self._guidance(i, (t + 1) / level.config.tokens, guidance)
            children = rows.sub_patches(chosen, level.config.sub_patch_size)
            canvas[:, t] = self.patches(i + 1, steps(canvas, t), children, inner)
        return unpatchify(canvas)

    def _masked(
        self, i: int, level: MARLevel, conditions: Conditions, rows: Rows, guidance: float | None
    ) -> Tensor:
        canvas = self._canvas(level, rows)
        index = rows.index(self._image_size, level.config.patch_size)
        rank = ranks(self._noise.orders[i][rows.image, index])
        guides = self._guides(i, level, conditions, rows, index, guidance)
        tokens, steps = level.config.tokens, self._s._iterations[i]
        masked = tokens
        for k in range(steps):
            mask = rank < masked
            remaining = still_masked(k, before=masked, steps=steps, tokens=tokens)
            inner = self._guidance(i, (tokens - remaining) / tokens, guidance)
            masked = remaining if k < steps - 1 else 0
            chosen = mask & (rank >= masked)
            branches = (self._branches, 1)
            handed_on = level(
                canvas.repeat(*branches, 1, 1, 1),
                mask.repeat(branches),
                conditions,
                guides=guides,
                wanted=chosen.repeat(branches),
            )
            children = rows.sub_patches(chosen, level.config.sub_patch_size)
            canvas[chosen] = self.patches(i + 1, handed_on, children, inner)
        return unpatchify(canvas)

    def _guides(
        self,
        i: int,
        level: MARLevel,
        conditions: Conditions,
        rows: Rows,
        index: Tensor,
        guidance: float | None,
    ) -> Tensor | None:
        if not level.config.guiding_pixel:
            return None
        uniforms = self._noise.guides[i][rows.image, index]
        values = self._values(level.guide_network, conditions, uniforms, guidance)
        return values.float().repeat(self._branches, 1)

    def _guidance(self, i: int, progress: float, above: float | None) -> float | None:
        """The schedule runs at level 0; below it guidance stays what it was above."""
        if self._branches == 1:
            return None
        return guidance_at(progress, self._s._settings.guidance) if i == 0 else above

    def _values(
        self,
        network: PixelNetwork,
        conditions: Conditions,
        uniforms: Tensor,
        guidance: float | None,
    ) -> Tensor:
        values = torch.zeros(uniforms.shape, dtype=torch.long, device=uniforms.device)
        steps = self._s._pixel_steps(network, conditions.middle, self._branches)
        for channel in range(values.shape[1]):
            logits = guided_logits(
                steps(values, channel),
                guidance=guidance,
                logit_scale=self._s._settings.logit_scale,
                filter_threshold=self._s._settings.filter_threshold,
            )
            values[:, channel] = self._s._draw(logits, uniforms[:, channel])
        return values

    def _canvas(self, level: ARLevel | MARLevel, rows: Rows) -> Tensor:
        size = level.config.sub_patch_size
        shape = (len(rows.image), level.config.tokens, 3, size, size)
        return torch.zeros(shape, dtype=torch.uint8, device=rows.image.device)
