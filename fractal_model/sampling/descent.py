"""Sampling of one batch: the recursion from the class down to the pixels (paper, section 4).

Decided here: all patches of all images that are sampled in the same step run as one batch. Known
pixels are context. A MAR level reads them on all sides. An AR level is causal, so a sub-patch
depends only on the known pixels before it. Guidance combines the logits of two branches, which walk
through the levels together. Outside the interval of guidance there is one: an AR level 0 computes
the other one up to the last step that needs it, and all other levels leave it out.

Shapes: B images, G branches of a network (2 with null rows: conditional rows, then these), R rows
of side P, T sub-patches of side p, N sub-patches sampled in one step, n conditions of each, D their
width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor

from fractal_model.common.devices import copy_to
from fractal_model.config.model import LevelConfig
from fractal_model.config.sampling import SamplingConfig
from fractal_model.model.ar import ARLevel
from fractal_model.model.conditions import Conditions
from fractal_model.model.fractal import FractalModel, Rows
from fractal_model.model.mar import MARLevel, Selected
from fractal_model.model.patches import unpatchify
from fractal_model.model.pixel import PixelNetwork
from fractal_model.model.randomness import ImageNoise
from fractal_model.sampling.compiled import CompiledChannels, CompiledPixels, innermost_weights
from fractal_model.sampling.cuda_graphs import Graphs
from fractal_model.sampling.known import KnownPatches
from fractal_model.sampling.masked import MaskedIterations, MaskedRows
from fractal_model.sampling.patch_noise import as_images, noise_at
from fractal_model.sampling.schedules import guidance_at
from fractal_model.sampling.selection import branch_rows, select_iterations
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

    level: Callable[[ARLevel, Conditions], LevelSteps]
    masked: Callable[[MaskedRows], MaskedIterations]
    pixel: Callable[[PixelNetwork, Tensor, int], PixelSteps]
    draw: Draw
    innermost: CompiledPixels | None = None
    """Compiled sampler of the innermost AR level together with its pixels. With None, `level` and
    `pixel` sample them."""
    channels: CompiledChannels | None = None
    """Compiled sampler of single pixels, for pixels below a MAR level. With None, `pixel` samples
    them."""
    graphs: Graphs | None = None
    """CUDA graphs of the innermost level, if that is a MAR level below another level. With None, no
    graph is used."""


class _Step(NamedTuple):
    """One sampling step of an AR level, or one iteration of a MAR level."""

    selected: Selected
    """Row and number of each of the N sub-patches that this step samples, ordered by row."""
    hidden: Tensor
    """True for each sub-patch that is not sampled yet after this step, (R, T) bool."""
    conditions: Sequence[Conditions]
    """Conditions (G · N, n, D) of the N sub-patches that this step samples, of each network.
    Without guidance there are those of the first network's first branch alone, (N, n, D)."""
    guidance: Tensor | None
    """Guidance of each row, (R,); None if the step has none."""


@dataclass
class Descent:
    """The sampling of one batch, level by level. Its fields are what all levels and rows share."""

    networks: Sequence[FractalModel]
    """The model and, with autoguidance, its guide, whose levels have the same patches."""
    settings: SamplingConfig
    iterations: tuple[int, ...]
    """Number of iterations of each MAR level, or of steps of each AR level."""
    steps: StepFunctions
    noise: ImageNoise
    known: Sequence[KnownPatches]
    """Known pixels, one entry per level; empty if no pixel is known."""
    observe: Observer | None
    branches: Sequence[int]
    """Number of branches of each network: [2] with null rows, [1, 1] with a guide, [1] without
    guidance."""
    side: int
    """Side of the images."""

    def generate_patches(
        self, i: int, conditions: Sequence[Conditions], rows: Rows, guidance: Tensor | None
    ) -> Tensor:
        """Sample the patches of level i, (R, 3, P, P) uint8, or pixels if i follows the last level.
        `conditions` (G · R, n, C) are those of each network. `guidance` (R,) is the guidance of
        each row, which level 0 has chosen. It is None at level 0 itself, and in steps without
        guidance, where `conditions` has one branch."""
        config = self.networks[0].config
        if i == len(config.levels):
            return self._sample_pixels(conditions, rows, guidance)
        level = config.levels[i]
        canvas, hidden = self._canvas(i, level, rows)
        if self.observe is not None:
            self.observe(i, rows, hidden, canvas)
        is_last = i == len(config.levels) - 1
        can_be_compiled = is_last and not self.known and self.observe is None
        if can_be_compiled and self.steps.innermost is not None:
            uniforms = as_images(self.noise, i, level, rows, self.side).pixels
            values = self.steps.innermost(conditions, uniforms, guidance)
            return unpatchify(values[..., None, None])
        if can_be_compiled and self.steps.graphs is not None and i > 0:
            return self._generate_by_graph(self.steps.graphs, i, conditions, rows, guidance)
        generate = self._autoregressive_steps if level.generator == "ar" else self._masked_steps
        for step in generate(i, canvas, hidden, conditions, rows, guidance):
            row, token = step.selected
            scale = None if step.guidance is None else step.guidance[row]
            inner = rows.sub_patches(row, token, level.grid, level.sub_patch_size)
            canvas[row, token] = self.generate_patches(i + 1, step.conditions, inner, scale)
            if self.observe is not None:
                self.observe(i, rows, step.hidden, canvas)
        return unpatchify(canvas)

    def _autoregressive_steps(
        self,
        i: int,
        canvas: Tensor,
        hidden: Tensor,
        conditions: Sequence[Conditions],
        rows: Rows,
        guidance: Tensor | None,
    ) -> Iterator[_Step]:
        """Yield the steps of AR level i in raster order, one for each sub-patch that is hidden in
        at least one row."""
        levels = (cast(ARLevel, network.levels[i]) for network in self.networks)
        computes = [self.steps.level(*pair) for pair in zip(levels, conditions, strict=False)]
        count = hidden.shape[1]
        tokens = hidden.any(0).nonzero().flatten().tolist() if self.known else range(count)
        scales = dict.fromkeys(tokens, guidance)
        if i == 0:
            scales = {t: self._guidance([(t + 1) / count] * len(canvas)) for t in tokens}
        last_guided = max((t for t in tokens if scales[t] is not None), default=-1)
        for t in range(tokens[-1] + 1 if tokens else 0):
            computed = self._branches(t <= last_guided)
            outputs = [
                compute(canvas, t, n) for compute, n in zip(computes, computed, strict=False)
            ]
            if t not in tokens:
                continue
            row = torch.arange(len(canvas), device=canvas.device)
            if self.known:
                row = row[hidden[:, t]]
            selected = [
                Conditions(output.values_NCD[branch_rows(row, len(canvas), n)])
                for output, n in zip(outputs, self._branches(scales[t] is not None), strict=False)
            ]
            hidden = hidden.clone()
            hidden[:, t] = False
            yield _Step((row, torch.full_like(row, t)), hidden, selected, scales[t])

    def _masked_steps(
        self,
        i: int,
        canvas: Tensor,
        mask: Tensor,
        conditions: Sequence[Conditions],
        rows: Rows,
        guidance: Tensor | None,
    ) -> Iterator[_Step]:
        """Yield the iterations of MAR level i. Each samples the hidden sub-patches with the highest
        scores in `noise.orders`."""
        level = self.networks[0].config.levels[i]
        colours = self._sample_colours(i, rows, conditions, guidance)
        branches = self.branches if i == 0 else self._branches(guidance is not None)
        known = [(~mask).nonzero(as_tuple=True)] if self.known else []
        computes = [
            self.steps.masked(self._masked_rows(i, *part, colours, known))
            for part in zip(self.networks, conditions, branches, strict=False)
        ]
        scores = noise_at(self.noise.orders[i], rows, self.side, level.patch_size)
        count = mask.shape[1]
        hidden = mask if self.known else None
        for selection in select_iterations(scores, self.iterations[i], hidden):
            scale = guidance
            if i == 0:
                # As published, the last iteration's guidance counts one sub-patch as still masked.
                scale = self._guidance([(count - max(n, 1)) / count for n in selection.remaining])
            branches = self._branches(scale is not None)
            pairs = zip(computes, branches, strict=False)
            outputs = [compute(canvas, mask, selection.selected, n) for compute, n in pairs]
            mask = selection.hidden
            yield _Step(selection.selected, mask, outputs, scale)
            known.append(selection.selected)

    def _generate_by_graph(
        self,
        graphs: Graphs,
        i: int,
        conditions: Sequence[Conditions],
        rows: Rows,
        guidance: Tensor | None,
    ) -> Tensor:
        """Sample the patches of MAR level i, the innermost one, by one CUDA graph for all
        iterations and pixels. The graph takes each patch for an image of its own, so everything
        that changes from call to call is an argument."""
        above, level = (None,) * i, self.networks[0].config.levels[i]
        steps = replace(self.steps, graphs=None)
        noise = as_images(self.noise, i, level, rows, self.side)

        def generate(
            pixels: Tensor,
            orders: Tensor | None,
            guides: Tensor | None,
            guidance: Tensor | None,
            *values: Tensor,
        ) -> Tensor:
            own = ImageNoise(pixels, (*above, orders), (*above, guides))
            shared = self.networks, self.settings, self.iterations, steps, own, (), None
            patches = Descent(*shared, self.branches, level.patch_size)
            whole = Rows.whole_images(len(pixels), pixels.device)
            return patches.generate_patches(i, [Conditions(v) for v in values], whole, guidance)

        return graphs(
            generate,
            noise.pixels,
            noise.orders[i],
            noise.guides[i],
            guidance,
            *(c.values_NCD for c in conditions),
            weights=innermost_weights(self.networks),
        )

    def _masked_rows(
        self,
        i: int,
        network: FractalModel,
        conditions: Conditions,
        branches: int,
        colours: Tensor | None,
        known: Sequence[Selected],
    ) -> MaskedRows:
        """Return the rows of MAR level i that a network computes. `colours` are those of the
        guiding pixels, (R, 3); None if the level has none. `known` grows with each iteration."""
        level = cast(MARLevel, network.levels[i])
        if colours is not None:
            colours = colours.repeat(branches, 1)
        count = network.config.conditions_read(i)
        even = not self.known
        return MaskedRows(level, conditions, colours, branches, count, even, known)

    def _sample_colours(
        self,
        i: int,
        rows: Rows,
        conditions: Sequence[Conditions],
        guidance: Tensor | None,
    ) -> Tensor | None:
        """Sample the guiding pixels of level i, (R, 3) in 0 … 255; None if the level has none."""
        level = self.networks[0].config.levels[i]
        if not level.guiding_pixel:
            return None
        uniforms = noise_at(self.noise.guides[i], rows, self.side, level.patch_size)
        pixels = [cast(MARLevel, network.levels[i]).guide_network for network in self.networks]
        return self._draw_values(pixels, conditions, uniforms, guidance).float()

    def _sample_pixels(
        self, conditions: Sequence[Conditions], rows: Rows, guidance: Tensor | None
    ) -> Tensor:
        """Sample the values of R rows that are single pixels, (R, 3, 1, 1) uint8."""
        uniforms = noise_at(self.noise.pixels, rows, self.side, 1)
        if self.steps.channels is not None:
            values = self.steps.channels([c.middle for c in conditions], uniforms, guidance)
        else:
            pixels = [network.pixel for network in self.networks]
            values = self._draw_values(pixels, conditions, uniforms, guidance)
        return values.to(torch.uint8)[..., None, None]

    def _draw_values(
        self,
        networks: Sequence[PixelNetwork],
        conditions: Sequence[Conditions],
        noise: Tensor,
        guidance: Tensor | None,
    ) -> Tensor:
        """Draw the values of pixels or guiding pixels, (R, 3) int64. `noise` (R, 3) has the uniform
        random number for each draw."""
        values = torch.zeros(noise.shape, dtype=torch.long, device=noise.device)
        branches = self._branches(guidance is not None)
        parts = zip(networks, conditions, branches, strict=False)
        computes = [self.steps.pixel(network, c.middle, n) for network, c, n in parts]
        scale = None if guidance is None else guidance[:, None]
        for channel in range(values.shape[1]):
            logits = [compute(values, channel) for compute in computes]
            guided = guided_logits(logits, scale, self.settings)
            values[:, channel] = self.steps.draw(guided, noise[:, channel])
        return values

    def _canvas(self, i: int, level: LevelConfig, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the canvas (R, T, 3, p, p) that level i fills, with the known pixels and 0
        elsewhere, and a mask (R, T), True where a sub-patch is hidden."""
        if self.known:
            numbers = rows.image, rows.index(self.side, level.patch_size)
            return self.known[i].tokens[numbers], self.known[i].hidden[numbers]
        size, shape = level.sub_patch_size, (len(rows.image), level.tokens)
        canvas = rows.image.new_zeros(*shape, 3, size, size, dtype=torch.uint8)
        return canvas, rows.image.new_ones(shape, dtype=torch.bool)

    def _branches(self, is_guided: bool) -> Sequence[int]:
        """Return the number of branches of each network that a step computes: without guidance one
        of the first network."""
        return self.branches if is_guided else (1,)

    def _guidance(self, progress: Sequence[float]) -> Tensor | None:
        """Return the guidance (B,) of a step at level 0 from each image's `progress` after it, or
        None if no image has guidance then. Images without it get 1 beside others that have it."""
        if sum(self.branches) == 1:
            return None
        scales = [guidance_at(done, self.settings) for done in progress]
        if all(scale is None for scale in scales):
            return None
        values = [1.0 if scale is None else scale for scale in scales]
        return copy_to(self.noise.pixels.device, torch.tensor(values))
