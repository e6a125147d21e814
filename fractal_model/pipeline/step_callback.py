"""Calls a program back after each step of level 0, the level of the whole image.

Shapes: n images of side S that are sampled together, T sub-patches of level 0 of side p.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fractal_model.config.sampling import SamplingConfig
from fractal_model.generation.sample_images import PartObserver
from fractal_model.model.fractal import Rows
from fractal_model.model.patches import unpatchify
from fractal_model.sampling.descent import Observer

if TYPE_CHECKING:
    from fractal_model.pipeline.fractal_pipeline import FractalPipeline

StepCallback = Callable[["FractalPipeline", int, int, dict[str, Any]], object]
"""Function that is called after each step with the pipeline, the number of steps done, the number
of all steps, and a dictionary: `images`, the images of this batch so far, (n, 3, S, S) uint8;
`hidden`, True where a pixel is not generated yet, (n, S, S) bool; `numbers`, a range with the
numbers of these images among all. What it returns is not used; an exception ends the sampling."""


def watch_steps(
    callback: StepCallback | None, pipeline: FractalPipeline, settings: SamplingConfig
) -> PartObserver | None:
    """Return the observer of parts that calls `callback` after each step of level 0; None if there
    is no callback."""
    if callback is None:
        return None
    total = settings.level_iterations(pipeline.model.config)[0]

    def watch(part: range) -> Observer:
        steps = -1  # The sampler calls once before the first step.

        def observe(level: int, rows: Rows, hidden: Tensor, canvas: Tensor) -> None:
            nonlocal steps
            if level > 0:
                return
            steps += 1
            if steps > 0:
                callback(pipeline, steps, total, _describe(part, hidden, canvas))

        return observe

    return watch


def _describe(part: range, hidden: Tensor, canvas: Tensor) -> dict[str, Any]:
    by_pixel = hidden[:, :, None, None, None].expand(-1, -1, 1, *canvas.shape[-2:])
    return {
        "images": unpatchify(canvas).cpu(),
        "hidden": unpatchify(by_pixel)[:, 0].cpu(),
        "numbers": part,
    }
