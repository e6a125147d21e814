"""Sampling: the recursion from the class down to the pixels (paper, section 4).

Decided here: a sampler yields images and nothing else; the rows of all images and all patches of
one iteration run as one batch; every random number comes from the image's own seed. Known pixels
are context: for a MAR level on all sides, for an AR level (causal) those in sub-patches before the
one at hand; later ones stay as they are and condition only what comes after them.

Shapes: B images, G branches (2 with guidance: conditional rows, then null rows), R rows, T
sub-patches of side p, N of them handed on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fractal_model.common.errors import FractalError
from fractal_model.common.memory import keep_freed_memory
from fractal_model.config.sampling import SamplingConfig
from fractal_model.model.ar import ARLevel
from fractal_model.model.conditions import Conditions
from fractal_model.model.fractal import NO_CLASS, FractalModel, Rows
from fractal_model.model.kernels.linear import reduced_weights
from fractal_model.model.mar import MARLevel
from fractal_model.model.pixel import PixelNetwork
from fractal_model.model.pixels import unpatchify
from fractal_model.model.randomness import ImageNoise, ranks
from fractal_model.sampling.compiled import CompiledChannels, CompiledPixels, CompiledSteps
from fractal_model.sampling.known import Known, KnownPatches
from fractal_model.sampling.masked import CachedMaskedSteps, MaskedRows, schedules
from fractal_model.sampling.orders import order_scores, require_order
from fractal_model.sampling.schedules import guidance_at
from fractal_model.sampling.steps import CachedLevelSteps, CachedPixelSteps
from fractal_model.sampling.uncached import (
    UncachedLevelSteps,
    UncachedMaskedSteps,
    UncachedPixelSteps,
)
from fractal_model.sampling.values import Draw, guided_logits, inverse_transform

Observer = Callable[[int, Rows, Tensor, Tensor], None]
"""Called when a level begins its rows and after each of its steps, with the level's number, its
rows, what is hidden (R, T) bool, and the canvas (R, T, 3, p, p) uint8. It must not change them."""


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
        keep_freed_memory(model.device)
        self._model = model
        self._settings = settings
        self._iterations = settings.level_iterations(model.config)
        require_order(settings.order, model.config)
        steps = CachedLevelSteps if cached else UncachedLevelSteps
        self._level_steps = [steps for _ in model.levels]
        self._masked_steps = CachedMaskedSteps if cached else UncachedMaskedSteps
        self._pixel_steps = CachedPixelSteps if cached else UncachedPixelSteps
        self._draw = draw
        self.descent: Callable[..., Descent] = Descent
        self._compiled_level = self._compiled_pixels = None
        if settings.compile and cached and draw is inverse_transform:
            self._compile(model, settings)

    def _compile(self, model: FractalModel, settings: SamplingConfig) -> None:
        *above, innermost = model.levels
        whole = isinstance(innermost, ARLevel) and bool(above)
        if whole:
            self._compiled_level = CompiledPixels(innermost, model.pixel, settings)
        if model.device.type != "cpu":  # on a GPU the rest is not measured
            return
        if not whole:
            self._compiled_pixels = CompiledChannels(model.pixel, settings)
        by_step = len(above) if whole else len(model.levels)
        self._level_steps[:by_step] = [partial(CachedLevelSteps, step=CompiledSteps())] * by_step

    @torch.no_grad()
    def __call__(
        self,
        labels: Tensor,
        seeds: Sequence[int],
        *,
        known: Known | None = None,
        observe: Observer | None = None,
    ) -> Tensor:
        """(B,) classes, NO_CLASS for none, and B seeds to (B, 3, S, S) uint8 images on the
        model's device.

        What is `known` comes back as it is, and the rest is generated from it. FractalError: no
        class at all, or not one seed and one known image for each.
        """
        if len(labels) != len(seeds) or not len(labels):
            raise FractalError(
                f"{len(labels)} classes and {len(seeds)} seeds: give one each, at least one"
            )
        noise = ImageNoise.draw(seeds, self._model.config, self._model.device)
        return self.from_noise(labels, noise, known=known, observe=observe)

    @torch.no_grad()
    def from_noise(
        self,
        labels: Tensor,
        noise: ImageNoise,
        *,
        known: Known | None = None,
        observe: Observer | None = None,
    ) -> Tensor:
        """The same from random numbers that are given."""
        config, device = self._model.config, self._model.device
        labels, noise = labels.to(device), noise.to(device)
        if known is not None:
            known.require(len(labels), config.image_size)
            known = known.to(device)
        if noise.orders[0] is not None:
            scores = order_scores(self._settings.order, noise.orders[0])
            noise = replace(noise, orders=(scores, *noise.orders[1:]))
        was_training = self._model.training
        self._model.eval()
        try:
            with reduced_weights(self._model):
                return self.descent(self, labels, noise, known, observe).patches(
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


class Descent:
    """One batch on its way down; holds what is the same for all its rows."""

    def __init__(
        self,
        sampler: Sampler,
        labels: Tensor,
        noise: ImageNoise,
        known: Known | None,
        observe: Observer | None,
    ) -> None:
        config = sampler._model.config
        self._s = sampler
        self._noise = noise
        self._branches = 2 if sampler.guided(labels) else 1
        self._image_size = config.image_size
        self._known = [known and KnownPatches.cut(known, level) for level in config.levels]
        self._observe = observe

    def patches(
        self, i: int, conditions: Conditions, rows: Rows, guidance: Tensor | None
    ) -> Tensor:
        """(R, 3, P, P) uint8 for the rows of level i; past the last level these are pixels.

        `guidance` (R,) is what level 0 gave the rows, None at level 0 and without null rows.
        """
        levels = self._s._model.levels
        if i == len(levels):
            uniforms = self._noise.pixels[rows.image, rows.index(self._image_size, 1)]
            if self._s._compiled_pixels is not None:
                values = self._s._compiled_pixels(conditions.middle, uniforms, guidance)
            else:
                values = self._values(self._s._model.pixel, conditions, uniforms, guidance)
            return values.to(torch.uint8)[..., None, None]
        if isinstance(levels[i], ARLevel):
            return self._autoregressive(i, levels[i], conditions, rows, guidance)
        return self._masked(i, levels[i], conditions, rows, guidance)

    def _autoregressive(
        self, i: int, level: ARLevel, conditions: Conditions, rows: Rows, guidance: Tensor | None
    ) -> Tensor:
        canvas, hidden = self._start(i, level, rows)
        if self._s._compiled_level is not None and self._is_plain(i):
            pixels = rows.sub_patches(hidden, 1)
            uniforms = self._noise.pixels[pixels.image, pixels.index(self._image_size, 1)]
            values = self._s._compiled_level(conditions, uniforms.view(*hidden.shape, -1), guidance)
            return unpatchify(values[..., None, None])
        steps = self._s._level_steps[i](level, conditions, self._branches)
        wanted = hidden.any(0).nonzero().flatten().tolist()
        for t in range(wanted[-1] + 1 if wanted else 0):
            handed_on = steps(canvas, t)
            if t not in wanted:
                continue
            chosen = torch.zeros_like(hidden)
            chosen[:, t] = hidden[:, t]
            handed_on = Conditions(handed_on.values_NCD[hidden[:, t].repeat(self._branches)])
            hidden, inner = hidden & ~chosen, guidance
            if i == 0:
                inner = self._guidance([(t + 1) / level.config.tokens] * len(canvas))
            self._fill(i, canvas, chosen, hidden, handed_on, rows, inner)
        return unpatchify(canvas)

    def _is_plain(self, i: int) -> bool:
        """Whether level i is the innermost below another, with nothing known and no observer."""
        last = i == len(self._s._model.levels) - 1
        return last and i > 0 and self._known[i] is None and self._observe is None

    def _masked(
        self, i: int, level: MARLevel, conditions: Conditions, rows: Rows, guidance: Tensor | None
    ) -> Tensor:
        canvas, mask = self._start(i, level, rows)
        index = rows.index(self._image_size, level.config.patch_size)
        # Known sub-patches rank above all hidden ones: they have come already.
        rank = ranks(torch.where(mask, self._noise.orders[i][rows.image, index], math.inf))
        guides = self._guides(i, level, conditions, rows, index, guidance)
        steps = self._s._masked_steps(
            MaskedRows(
                level,
                conditions,
                guides,
                branches=self._branches,
                read=self._s._model.config.conditions_read(i),
                even=self._known[i] is None,
            )
        )
        for remaining in schedules(mask.sum(1), self._s._iterations[i]):
            still = rank < remaining[:, None]
            chosen = mask & ~still
            handed_on = steps(canvas, mask, chosen)
            mask, inner = still, guidance
            if i == 0:
                # Published: for guidance the last step still counts one as masked.
                left, tokens = remaining.clamp(min=1).tolist(), level.config.tokens
                inner = self._guidance([(tokens - n) / tokens for n in left])
            self._fill(i, canvas, chosen, mask, handed_on, rows, inner)
        return unpatchify(canvas)

    def _start(self, i: int, level: ARLevel | MARLevel, rows: Rows) -> tuple[Tensor, Tensor]:
        """The canvas (R, T, 3, p, p) with what is known, and what is hidden (R, T)."""
        size, tokens = level.config.sub_patch_size, level.config.tokens
        count, device = len(rows.image), rows.image.device
        if self._known[i] is None:
            canvas = torch.zeros(count, tokens, 3, size, size, dtype=torch.uint8, device=device)
            hidden = torch.ones(count, tokens, dtype=torch.bool, device=device)
        else:
            place = rows.image, rows.index(self._image_size, level.config.patch_size)
            canvas, hidden = self._known[i].tokens[place], self._known[i].hidden[place]
        self._show(i, rows, hidden, canvas)
        return canvas, hidden

    def _fill(
        self,
        i: int,
        canvas: Tensor,
        chosen: Tensor,
        hidden: Tensor,
        handed_on: Conditions,
        rows: Rows,
        guidance: Tensor | None,
    ) -> None:
        """Generate the `chosen` sub-patches through the next level; `hidden` are those left."""
        children = rows.sub_patches(chosen, canvas.shape[-1])
        inner = None if guidance is None else guidance[:, None].expand_as(chosen)[chosen]
        canvas[chosen] = self.patches(i + 1, handed_on, children, inner)
        self._show(i, rows, hidden, canvas)

    def _show(self, i: int, rows: Rows, hidden: Tensor, canvas: Tensor) -> None:
        if self._observe is not None:
            self._observe(i, rows, hidden, canvas)

    def _guides(
        self,
        i: int,
        level: MARLevel,
        conditions: Conditions,
        rows: Rows,
        index: Tensor,
        guidance: Tensor | None,
    ) -> Tensor | None:
        if not level.config.guiding_pixel:
            return None
        uniforms = self._noise.guides[i][rows.image, index]
        values = self._values(level.guide_network, conditions, uniforms, guidance)
        return values.float().repeat(self._branches, 1)

    def _guidance(self, progress: Sequence[float]) -> Tensor | None:
        """(B,) for a step of level 0; below it guidance stays what it was above."""
        if self._branches == 1:
            return None
        at = [guidance_at(done, self._s._settings.guidance) for done in progress]
        return torch.tensor(at, device=self._noise.pixels.device)

    def _values(
        self,
        network: PixelNetwork,
        conditions: Conditions,
        uniforms: Tensor,
        guidance: Tensor | None,
    ) -> Tensor:
        values = torch.zeros(uniforms.shape, dtype=torch.long, device=uniforms.device)
        steps = self._s._pixel_steps(network, conditions.middle, self._branches)
        for channel in range(values.shape[1]):
            logits = guided_logits(
                steps(values, channel),
                guidance=None if guidance is None else guidance[:, None],
                logit_scale=self._s._settings.logit_scale,
                filter_threshold=self._s._settings.filter_threshold,
            )
            values[:, channel] = self._s._draw(logits, uniforms[:, channel])
        return values
