"""The innermost AR level and its pixels as one compiled function, or below a MAR level the pixels
alone; on a CPU also a step of each other AR level.

Decided here: the time goes not into arithmetic but into the start of thousands of small operations.
With caches whose shapes never change, two positions of the innermost level, their channels and the
next token are one function, which `torch.compile` turns into one piece of C++; on a GPU it makes
kernels, and those of the whole level are one CUDA graph. The levels above have long sequences:
their caches grow, for with a fixed one attention would read all of it from the first step on. The
outcome is that of `steps.py` up to rounding, so an image may differ from an uncompiled one in a
value whose draw was close.

Shapes: G branches (2 with guidance), R rows, T sub-patches of one pixel.
"""

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fractal_model.common.compiler import require_compiler
from fractal_model.config.sampling import SamplingConfig
from fractal_model.model.ar import ARLevel
from fractal_model.model.attention import FixedCache, KeyValueCache
from fractal_model.model.blocks import Block
from fractal_model.model.conditions import Conditions
from fractal_model.model.mar import MARLevel
from fractal_model.model.pixel import CHANNELS, PixelNetwork
from fractal_model.sampling.cuda_graphs import Graphs
from fractal_model.sampling.values import guided_logits, inverse_transform

_AT_A_TIME = 2
"""Positions in one call: with one, a tenth of the time is the call's own. Four would save a
twentieth more, and take the compiler twice as long."""
_WIDEST = 512
"""Width up to which a level's steps are compiled: above, MKL's products in compiled code are slower
than oneDNN's and hide what starts them, and there are many blocks to compile."""
_MOST_PIECES = 64
"""Pieces of compiled code in one process, for different models and settings."""


class CompiledPixels:
    """All the pixels of rows of an AR level that hands on single pixels."""

    def __init__(self, level: ARLevel, network: PixelNetwork, settings: SamplingConfig) -> None:
        self._level = level
        self._network = network
        self._channels = _Channels(network, settings)
        self._step: Callable[..., tuple[Tensor, Tensor]] = _compiled(
            self._several, level.positions.device.type
        )
        self._graphs = Graphs()

    def __call__(self, conditions: Conditions, uniforms: Tensor, guidance: Tensor | None) -> Tensor:
        """Conditions of (G · R) rows, uniform numbers (R, T, 3) and guidance (R,) or None to
        values (R, T, 3) uint8."""
        guides = None if guidance is None else guidance[:, None].contiguous()
        inputs = conditions.values_NCD, uniforms, guides
        if uniforms.device.type != "cuda":
            return self._pixels(*inputs)
        weights = chain(self._level.parameters(), self._network.parameters())
        return self._graphs(self._pixels, *inputs, weights=weights)

    def _pixels(self, conditions: Tensor, uniforms: Tensor, guides: Tensor | None) -> Tensor:
        rows, tokens, _ = uniforms.shape
        token = self._level.first_token(Conditions(conditions))
        kept = _zeros(self._level.blocks, tokens, token)
        values = torch.empty(rows, tokens, CHANNELS, dtype=torch.uint8, device=uniforms.device)
        places = torch.arange(tokens, device=uniforms.device)
        several = math.gcd(tokens, _AT_A_TIME)
        for t in range(0, tokens, several):
            at = slice(t, t + several)
            values[:, at], token = self._step(token, places[at], kept, uniforms[:, at], guides)
        return values

    def _several(
        self,
        token: Tensor,
        places: Tensor,
        kept: list[tuple[Tensor, Tensor]],
        uniforms: Tensor,
        guidance: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The pixels of each row at n places, (R, n, 3) uint8, and the token of the next place."""
        values: list[Tensor] = []
        for place, uniform in zip(places.split(1), uniforms.unbind(1), strict=True):
            caches = [FixedCache(keys, values, place) for keys, values in kept]
            middle = self._level.step_at(token, caches).middle
            values.append(self._channels(middle, uniform, guidance))
            following = self._level.next_token(values[-1][..., None, None])
            token = following.repeat(len(token) // len(uniform), 1)
        return torch.stack(values, dim=1), token


class CompiledSteps:
    """Steps on a CPU, of which those of `levels` are compiled, with caches that grow."""

    def __init__(self, levels: Sequence[ARLevel | MARLevel]) -> None:
        self._levels = levels
        self._step: Callable[..., Conditions] = _compiled(ARLevel.step, "cpu")

    def __call__(self, level: ARLevel, token: Tensor, caches: list[KeyValueCache]) -> Conditions:
        """`level.step`. Not compiled are the last one, for a full cache is contiguous and torch
        would compile it once more; wide levels; and under autocast, where compiled code casts all
        weights in each step."""
        last = caches[0].length == level.config.tokens - 1
        plain = last or level.config.width > _WIDEST or torch.is_autocast_enabled("cpu")
        step = ARLevel.step if plain or level not in self._levels else self._step
        return step(level, token, caches)


class CompiledChannels:
    """Single pixels, of as many rows as a MAR level hands on in its iteration."""

    def __init__(self, network: PixelNetwork, settings: SamplingConfig) -> None:
        self._channels = _Channels(network, settings)
        self._values: Callable[..., Tensor] = _compiled(self._of_branches, "cpu")

    def __call__(self, middle: Tensor, uniforms: Tensor, guidance: Tensor | None) -> Tensor:
        """Conditions (G · R, C), uniform numbers (R, 3) and guidance (R,) or None to values (R, 3)
        uint8."""
        guides = None if guidance is None else guidance[:, None].contiguous()
        branches = middle.contiguous().unflatten(0, (-1, len(uniforms)))
        # From the first call on: torch would compile for its number of rows, then for any.
        for tensor, rows in ((branches, 1), (uniforms, 0), (guides, 0)):
            if tensor is not None:
                torch._dynamo.maybe_mark_dynamic(tensor, rows)
        return self._values(branches, uniforms, guides)

    def _of_branches(self, middle: Tensor, uniforms: Tensor, guidance: Tensor | None) -> Tensor:
        return self._channels(middle.flatten(0, 1), uniforms, guidance)


class _Channels:
    """What is compiled: the three channels of pixels, one after the other."""

    def __init__(self, network: PixelNetwork, settings: SamplingConfig) -> None:
        self._network = network
        self._settings = settings

    def __call__(self, middle: Tensor, uniforms: Tensor, guidance: Tensor | None) -> Tensor:
        network = self._network
        drawn: list[Tensor] = []
        token = network.first_token(middle)
        place = torch.zeros(1, dtype=torch.long, device=token.device)
        kept = _zeros(network.blocks, CHANNELS, token)
        for channel in range(CHANNELS):
            if channel > 0:
                token = network.next_token(channel - 1, drawn[-1]).to(token.dtype)
                token = token.repeat(len(middle) // len(uniforms), 1)
                place = torch.full_like(place, channel)
            caches = [FixedCache(keys, values, place) for keys, values in kept]
            logits = network.step(token, channel, caches)
            logits = guided_logits(logits, guidance, self._settings)
            drawn.append(inverse_transform(logits, uniforms[:, channel]))
        return torch.stack(drawn, dim=1).to(torch.uint8)


def _zeros(blocks: Sequence[Block], capacity: int, token: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each block, for `capacity` positions of the token's rows."""
    shapes = [block.attention.cache_shape(len(token), capacity) for block in blocks]
    return [(token.new_zeros(shape), token.new_zeros(shape)) for shape in shapes]


def _compiled(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    """`function` in compiled form, for tensors on `device`. FractalError: there is no compiler."""
    require_compiler()
    compile: Callable[..., Callable[..., Any]] = torch.compile  # annotated without recompile_limit
    options = {} if device == "cuda" else {"cpp_wrapper": True}
    # Not one piece of code for each number of rows: below a MAR level it changes all the time.
    # Not fullgraph: past the limit of pieces torch goes on uncompiled, where it would end.
    return compile(function, dynamic=None, options=options, recompile_limit=_MOST_PIECES)
