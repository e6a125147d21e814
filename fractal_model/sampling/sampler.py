"""The sampler, which generates images with a model from classes and seeds.

Decided here: a sampler returns images and nothing else. Every random number of an image comes from
the image's seed. With guidance each conditional row has a null row in the same batch, or a guide
predicts it too. The recursion itself is in `descent.py`.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fractal_model.common.errors import FractalError
from fractal_model.common.memory import keep_freed_memory
from fractal_model.config.sampling import SamplingConfig
from fractal_model.model.ar import ARLevel
from fractal_model.model.fractal import NO_CLASS, FractalModel, Rows, evaluation_mode
from fractal_model.model.kernels.linear import reduced_weights
from fractal_model.model.mar import MARLevel
from fractal_model.model.randomness import ImageNoise
from fractal_model.sampling.compiled import CompiledChannels, CompiledPixels, CompiledSteps
from fractal_model.sampling.cuda_graphs import Graphs
from fractal_model.sampling.descent import Descent, Observer, StepFunctions
from fractal_model.sampling.guide import networks_of
from fractal_model.sampling.known import KnownPatches, KnownPixels
from fractal_model.sampling.masked import CachedMaskedIterations
from fractal_model.sampling.orders import order_scores, require_order
from fractal_model.sampling.steps import cached_level_steps, cached_pixel_steps
from fractal_model.sampling.uncached import (
    uncached_level_steps,
    uncached_masked_iterations,
    uncached_pixel_steps,
)
from fractal_model.sampling.values import Draw, inverse_transform


class Sampler:
    """Generates images with a model: `sampler(labels, seeds)`. With `cached=False` it samples
    slowly, without caches, as a reference. `draw` draws values from logits; only comparisons with
    other code pass their own. FractalError: the settings do not fit the model, or
    `settings.compile` is set and there is no compiler."""

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
        self._networks = networks_of(model, settings)
        self._settings = settings
        self._iterations = settings.level_iterations(model.config)
        require_order(settings.order, model.config)
        if cached:
            self._steps = StepFunctions(
                cached_level_steps, CachedMaskedIterations, cached_pixel_steps, draw
            )
            if settings.compile and draw is inverse_transform:
                self._steps = _compile_steps(self._steps, self._networks, settings)
        else:
            self._steps = StepFunctions(
                uncached_level_steps, uncached_masked_iterations, uncached_pixel_steps, draw
            )
        self.descent: Callable[..., Descent] = Descent

    @torch.no_grad()
    def __call__(
        self,
        labels: Tensor,
        seeds: Sequence[int],
        *,
        known: KnownPixels | None = None,
        observe: Observer | None = None,
    ) -> Tensor:
        """Generate one image for each of B labels (classes or NO_CLASS) and B seeds: (B, 3, S, S)
        uint8, on the model's device. Known pixels stay as they are, and the others are generated
        from them. FractalError: there is no label, the numbers of labels, seeds and known images
        differ, or a class or a seed is out of range."""
        if len(labels) != len(seeds) or not len(labels):
            raise FractalError(
                f"labels: {len(labels)}, seeds: {len(seeds)}; give one seed per label, at least one"
            )
        noise = ImageNoise.draw(seeds, self._model.config, self._model.device)
        return self.from_noise(labels, noise, known=known, observe=observe)

    @torch.no_grad()
    def from_noise(
        self,
        labels: Tensor,
        noise: ImageNoise,
        *,
        known: KnownPixels | None = None,
        observe: Observer | None = None,
    ) -> Tensor:
        """Generate images (B, 3, S, S) uint8 as a call of the sampler does, but from the random
        numbers in `noise` instead of seeds."""
        model, settings, device = self._model, self._settings, self._model.device
        labels, noise = labels.to(device), noise.to(device)
        known_patches = []
        if known is not None:
            known.require_shape(len(labels), model.config.image_size)
            known = known.to(device)
            known_patches = [KnownPatches.cut(known, level) for level in model.config.levels]
        if noise.orders[0] is not None:
            scores = order_scores(settings.order, noise.orders[0])
            noise = replace(noise, orders=(scores, *noise.orders[1:]))
        rows = Rows.whole_images(len(labels), device)
        networks, branches = self._networks, [1] * len(self._networks)
        # With guidance 1, or without any class, another branch would change nothing.
        if settings.guidance == 1:
            networks, branches = [model], [1]
        elif len(networks) == 1 and bool((labels != NO_CLASS).any()):
            labels, branches = torch.cat([labels, torch.full_like(labels, NO_CLASS)]), [2]
        shared = networks, settings, self._iterations, self._steps, noise, known_patches, observe
        descent = self.descent(*shared, branches, model.config.image_size)
        with ExitStack() as stack:
            for network in networks:
                stack.enter_context(evaluation_mode(network))
                stack.enter_context(reduced_weights(network))
            roots = [network.root(labels) for network in networks]
            return descent.generate_patches(0, roots, rows, None)


def _compile_steps(
    steps: StepFunctions, networks: Sequence[FractalModel], settings: SamplingConfig
) -> StepFunctions:
    """Replace step functions by compiled ones where these are faster on the models' device."""
    levels = [level for network in networks for level in network.levels[:-1]]
    innermost = [network.levels[-1] for network in networks]
    if isinstance(innermost[0], ARLevel) and levels:
        steps = replace(steps, innermost=CompiledPixels(networks, settings))
    else:
        levels += innermost
    if networks[0].device.type != "cpu":  # On a GPU, compiling the other parts was never measured.
        has_graphs = isinstance(innermost[0], MARLevel) and networks[0].device.type == "cuda"
        return replace(steps, graphs=Graphs()) if has_graphs else steps
    if steps.innermost is None:
        steps = replace(steps, channels=CompiledChannels(networks, settings))
    return replace(steps, level=partial(cached_level_steps, compute=CompiledSteps(levels)))
