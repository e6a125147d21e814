"""The innermost AR level and its pixels, one sub-patch a call, as one compiled function; below a
MAR level the pixels alone.

Decided here: what costs time there is not arithmetic but the start of each of thousands of small
operations. With caches whose shapes never change, one position of the level, its three channels
and the next token are one function, which `torch.compile` turns into one piece of C++; on a GPU it
makes kernels, and the whole level's are one CUDA graph. It computes what `steps.py` computes, up to
rounding, so an image may differ from an uncompiled one in a value whose draw was close.

Shapes: G branches (2 with guidance), R rows, T sub-patches of one pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fractal_model.compiler import require_compiler
from fractal_model.model.ar import ARLevel
from fractal_model.model.attention import FixedCache
from fractal_model.model.conditions import Conditions
from fractal_model.model.pixel import CHANNELS, PixelNetwork
from fractal_model.sampling.captured import Graphs
from fractal_model.sampling.settings import SamplingConfig
from fractal_model.sampling.values import guided_logits, inverse_transform

_MOST_PIECES = 64
"""Of compiled code in one process, for different models and settings."""


class CompiledPixels:
    """All the pixels of rows of an AR level that hands on single pixels."""

    def __init__(self, level: ARLevel, network: PixelNetwork, settings: SamplingConfig) -> None:
        self._level = level
        self._network = network
        self._channels = _Channels(network, settings)
        self._step: Callable[..., tuple[Tensor, Tensor]] = _compiled(self._one, level.positions)
        self._graphs = Graphs()

    def __call__(self, conditions: Conditions, uniforms: Tensor, guidance: Tensor | None) -> Tensor:
        """Conditions of (G · R) rows, uniform numbers (R, T, 3) and guidance (R,) or None to
        values (R, T, 3) uint8."""
        guides = None if guidance is None else guidance[:, None].contiguous()
        given = conditions.values_NCD, uniforms, guides
        if uniforms.device.type != "cuda":
            return self._pixels(*given)
        weights = chain(self._level.parameters(), self._network.parameters())
        return self._graphs(self._pixels, *given, weights=weights)

    def _pixels(self, conditions: Tensor, uniforms: Tensor, guides: Tensor | None) -> Tensor:
        rows, tokens, _ = uniforms.shape
        token = self._level.first_token(Conditions(conditions))
        kept = self._caches(token, tokens)
        values = torch.empty(rows, tokens, CHANNELS, dtype=torch.uint8, device=uniforms.device)
        places = torch.arange(tokens, device=uniforms.device)
        for t in range(tokens):
            found, token = self._step(token, places[t : t + 1], kept, uniforms[:, t], guides)
            values[:, t] = found
        return values

    def _caches(self, token: Tensor, capacity: int) -> list[tuple[Tensor, Tensor]]:
        blocks = self._level.blocks
        return [FixedCache.zeros(b.attention, len(token), capacity, token) for b in blocks]

    def _one(
        self,
        token: Tensor,
        place: Tensor,
        kept: list[tuple[Tensor, Tensor]],
        uniforms: Tensor,
        guidance: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """One pixel of each row (R, 3) uint8, and the token of the next place."""
        caches = [FixedCache(keys, values, place) for keys, values in kept]
        middle = self._level.step_at(token, caches).middle
        values = self._channels(middle, uniforms, guidance)
        following = self._level.next_token(values[..., None, None])
        return values, following.repeat(len(token) // len(uniforms), 1)


class CompiledChannels:
    """Single pixels, of as many rows as a MAR level hands on in its iteration."""

    def __init__(self, network: PixelNetwork, settings: SamplingConfig) -> None:
        self._channels = _Channels(network, settings)
        self._values: Callable[..., Tensor] = _compiled(self._of_branches, network.biases[0])

    def __call__(self, middle: Tensor, uniforms: Tensor, guidance: Tensor | None) -> Tensor:
        """Conditions (G · R, C), uniform numbers (R, 3) and guidance (R,) or None to values (R, 3)
        uint8."""
        guides = None if guidance is None else guidance[:, None].contiguous()
        branches = middle.contiguous().unflatten(0, (-1, len(uniforms)))
        # From the first call on, or torch would compile for its number of rows, then for any.
        for given, rows in ((branches, 1), (uniforms, 0), (guides, 0)):
            if given is not None:
                torch._dynamo.maybe_mark_dynamic(given, rows)
        return self._values(branches, uniforms, guides)

    def _of_branches(self, middle: Tensor, uniforms: Tensor, guidance: Tensor | None) -> Tensor:
        return self._channels(middle.flatten(0, 1), uniforms, guidance)


class _Channels:
    """What is compiled: the three channels of pixels, one after the other."""

    def __init__(self, network: PixelNetwork, settings: SamplingConfig) -> None:
        self._network = network
        self._settings = settings

    def __call__(self, middle: Tensor, uniforms: Tensor, guidance: Tensor | None) -> Tensor:
        network, drawn = self._network, []
        token = network.first_token(middle)
        place = torch.zeros(1, dtype=torch.long, device=token.device)
        kept = [FixedCache.zeros(b.attention, len(token), CHANNELS, token) for b in network.blocks]
        for channel in range(CHANNELS):
            if channel > 0:
                token = network.next_token(channel - 1, drawn[-1]).to(token.dtype)
                token = token.repeat(len(middle) // len(uniforms), 1)
                place = torch.full_like(place, channel)
            caches = [FixedCache(keys, values, place) for keys, values in kept]
            logits = guided_logits(
                network.step(token, channel, caches),
                guidance=guidance,
                logit_scale=self._settings.logit_scale,
                filter_threshold=self._settings.filter_threshold,
            )
            drawn.append(inverse_transform(logits, uniforms[:, channel]))
        return torch.stack(drawn, dim=1).to(torch.uint8)


def _compiled(function: Callable[..., Any], weight: Tensor) -> Callable[..., Any]:
    """`function` in compiled form, where `weight` is. FractalError: there is no compiler."""
    require_compiler()
    how = {} if weight.device.type == "cuda" else {"cpp_wrapper": True}
    # Not one piece of code for each number of rows: below a MAR level it changes all the time.
    # Not fullgraph: past the limit of pieces torch goes on uncompiled, where it would end.
    return torch.compile(function, dynamic=None, options=how, recompile_limit=_MOST_PIECES)
