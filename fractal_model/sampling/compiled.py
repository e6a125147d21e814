"""Compiled parts of sampling: the innermost AR level with its pixels; on a CPU also the steps of
the other AR levels, and single pixels below a MAR level.

Decided here: most of the time is spent not on arithmetic but on starting thousands of small
operations. One function therefore computes two positions of the innermost level with their
channels, in caches whose shapes never change. `torch.compile` turns it into C++ on a CPU. On a GPU
it makes kernels, which one CUDA graph starts. The levels above have long sequences, so their caches
grow: attention would read all of a fixed cache from the first step. Results equal those of
`steps.py` up to rounding. Rounding can change a value that is drawn close to the limit of the next
one.

Shapes: G branches of a network (2 with null rows), R rows, T sub-patches of one pixel, C width of a
condition.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from fractal_model.common.compiler import prepare_compiler
from fractal_model.config.sampling import SamplingConfig
from fractal_model.model.ar import ARLevel
from fractal_model.model.attention import FixedCache, KeyValueCache
from fractal_model.model.blocks import Block
from fractal_model.model.conditions import Conditions
from fractal_model.model.fractal import FractalModel
from fractal_model.model.mar import MARLevel
from fractal_model.model.pixel import CHANNELS
from fractal_model.sampling.cuda_graphs import Graphs
from fractal_model.sampling.values import guided_logits, inverse_transform

_POSITIONS_PER_CALL = 2
"""Positions that one call computes. With 1, the calls themselves take a tenth of the time. With 4,
sampling takes a twentieth less time than with 2, but compiling takes twice as long."""
_WIDEST = 512
"""Largest width of a level whose steps are compiled. Compiled code uses MKL's products, which are
slower than oneDNN's for wider levels, and wide levels have many blocks to compile."""
_RECOMPILE_LIMIT = 64
"""Largest number of versions of one function that a process compiles, for different models and
settings. Further ones run as plain code."""
_Buffers = list[tuple[Tensor, Tensor]]
"""Keys and values of each block of one network."""


class CompiledPixels:
    """Sampler of all pixels in the patches of an AR level whose sub-patches are single pixels."""

    def __init__(self, networks: Sequence[FractalModel], settings: SamplingConfig) -> None:
        self._networks = networks
        self._levels = [cast(ARLevel, network.levels[-1]) for network in networks]
        self._channels = _ChannelSampler(networks, settings)
        self._step: Callable[..., tuple[Tensor, list[Tensor]]] = _compile(
            self._sample_positions, networks[0].device.type
        )
        self._graphs = Graphs()

    def __call__(
        self, conditions: Sequence[Conditions], uniforms: Tensor, guidance: Tensor | None
    ) -> Tensor:
        """Sample the T pixels of each of R patches, (R, T, 3) uint8. `conditions` has G · R rows
        for each network: R for each branch. `uniforms` (R, T, 3) are random numbers. `guidance`
        (R,) is the guidance of each patch, None without guidance."""
        guides = None if guidance is None else guidance[:, None].contiguous()
        values = [c.values_NCD for c in conditions]
        if uniforms.device.type != "cuda":
            return self._sample_pixels(uniforms, guides, *values)
        weights = innermost_weights(self._networks)
        return self._graphs(self._sample_pixels, uniforms, guides, *values, weights=weights)

    def _sample_pixels(
        self, uniforms: Tensor, guides: Tensor | None, *conditions: Tensor
    ) -> Tensor:
        rows, tokens, _ = uniforms.shape
        levels = list(zip(self._levels, conditions, strict=False))
        inputs = [level.first_token(Conditions(values)) for level, values in levels]
        pairs = zip(levels, inputs, strict=True)
        buffers = [_buffers(level.blocks, tokens, token) for (level, _), token in pairs]
        values = torch.empty(rows, tokens, CHANNELS, dtype=torch.uint8, device=uniforms.device)
        positions = torch.arange(tokens, device=uniforms.device)
        count = math.gcd(tokens, _POSITIONS_PER_CALL)
        for t in range(0, tokens, count):
            at = slice(t, t + count)
            arguments = inputs, positions[at], buffers, uniforms[:, at], guides
            values[:, at], inputs = self._step(*arguments)
        return values

    def _sample_positions(
        self,
        inputs: list[Tensor],
        positions: Tensor,
        buffers: list[_Buffers],
        uniforms: Tensor,
        guidance: Tensor | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Sample the pixels at n positions. Return them, (R, n, 3) uint8, and each network's input
        token of the position after them."""
        values: list[Tensor] = []
        for position, uniform in zip(positions.split(1), uniforms.unbind(1), strict=True):
            middles = [
                level.step_at(token, _caches(buffer, position)).middle
                for level, token, buffer in zip(self._levels, inputs, buffers, strict=False)
            ]
            values.append(self._channels(middles, uniform, guidance))
            inputs = [
                level.next_token(values[-1][..., None, None]).repeat(len(token) // len(uniform), 1)
                for level, token in zip(self._levels, inputs, strict=False)
            ]
        return torch.stack(values, dim=1), inputs


class CompiledSteps:
    """Computes steps of AR levels on a CPU with growing caches; compiles only those of `levels`."""

    def __init__(self, levels: Sequence[ARLevel | MARLevel]) -> None:
        self._levels = levels
        self._step: Callable[..., Conditions] = _compile(ARLevel.step, "cpu")

    def __call__(self, level: ARLevel, token: Tensor, caches: list[KeyValueCache]) -> Conditions:
        """Return `level.step(token, caches)`. Three kinds of steps are not compiled: a level's last
        step, because a full cache is contiguous and torch would compile once more; the steps of
        wide levels; and steps under autocast, where compiled code would cast all weights every
        time."""
        is_last = caches[0].length == level.config.tokens - 1
        is_plain = is_last or level.config.width > _WIDEST or torch.is_autocast_enabled("cpu")
        step = ARLevel.step if is_plain or level not in self._levels else self._step
        return step(level, token, caches)


class CompiledChannels:
    """Samples single pixels below a MAR level, in batches of any number of rows."""

    def __init__(self, networks: Sequence[FractalModel], settings: SamplingConfig) -> None:
        self._channels = _ChannelSampler(networks, settings)
        self._sample: Callable[..., Tensor] = _compile(self._sample_rows, "cpu")

    def __call__(
        self, middles: Sequence[Tensor], uniforms: Tensor, guidance: Tensor | None
    ) -> Tensor:
        """Sample R pixels, (R, 3) uint8. `middles` (G · R, C) are condition 0 of the pixels in each
        branch, for each network, `uniforms` (R, 3) are random numbers, `guidance` is each pixel's
        (R,) or None."""
        guides = None if guidance is None else guidance[:, None].contiguous()
        branches = [m.contiguous().unflatten(0, (-1, len(uniforms))) for m in middles]
        # Without this torch would first compile for one number of rows, then again for any.
        for tensor, rows in (*((b, 1) for b in branches), (uniforms, 0), (guides, 0)):
            if tensor is not None:
                torch._dynamo.maybe_mark_dynamic(tensor, rows)
        return self._sample(branches, uniforms, guides)

    def _sample_rows(
        self, branches: Sequence[Tensor], uniforms: Tensor, guidance: Tensor | None
    ) -> Tensor:
        return self._channels([middle.flatten(0, 1) for middle in branches], uniforms, guidance)


class _ChannelSampler:
    """Samples the three channels of pixels one after the other, in code that can be compiled."""

    def __init__(self, networks: Sequence[FractalModel], settings: SamplingConfig) -> None:
        self._networks = [network.pixel for network in networks]
        self._settings = settings

    def __call__(
        self, middles: Sequence[Tensor], uniforms: Tensor, guidance: Tensor | None
    ) -> Tensor:
        networks = self._networks[: len(middles)]
        drawn: list[Tensor] = []
        pairs = zip(networks, middles, strict=True)
        tokens = [network.first_token(middle) for network, middle in pairs]
        position = torch.zeros(1, dtype=torch.long, device=uniforms.device)
        pairs = zip(networks, tokens, strict=True)
        buffers = [_buffers(network.blocks, CHANNELS, token) for network, token in pairs]
        for channel in range(CHANNELS):
            if channel > 0:
                tokens = [
                    network.next_token(channel - 1, drawn[-1])
                    .to(token.dtype)
                    .repeat(len(token) // len(uniforms), 1)
                    for network, token in zip(networks, tokens, strict=True)
                ]
                position = torch.full_like(position, channel)
            logits = [
                network.step(token, channel, _caches(buffer, position))
                for network, token, buffer in zip(networks, tokens, buffers, strict=True)
            ]
            guided = guided_logits(logits, guidance, self._settings)
            drawn.append(inverse_transform(guided, uniforms[:, channel]))
        return torch.stack(drawn, dim=1).to(torch.uint8)


def innermost_weights(networks: Sequence[FractalModel]) -> Iterator[Tensor]:
    """Yield all weights of the innermost levels and the pixel networks."""
    for network in networks:
        yield from network.levels[-1].parameters()
        yield from network.pixel.parameters()


def _caches(buffers: _Buffers, position: Tensor) -> list[FixedCache]:
    return [FixedCache(keys, values, position) for keys, values in buffers]


def _buffers(blocks: Sequence[Block], capacity: int, token: Tensor) -> _Buffers:
    """Return two tensors of zeros for each block, as buffers of its keys and values at `capacity`
    positions. They have as many rows as `token`."""
    shapes = [block.attention.cache_shape(len(token), capacity) for block in blocks]
    return [(token.new_zeros(shape), token.new_zeros(shape)) for shape in shapes]


def _compile(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    """Compile `function` for tensors on `device`. FractalError: there is no compiler."""
    prepare_compiler()
    compile: Callable[..., Callable[..., Any]] = torch.compile  # Its type lacks `recompile_limit`.
    options = {} if device == "cuda" else {"cpp_wrapper": True}
    # Not dynamic=False: below a MAR level there are too many different numbers of rows.
    # Not fullgraph: beyond the limit torch would raise an error instead of running plain code.
    return compile(function, dynamic=None, options=options, recompile_limit=_RECOMPILE_LIMIT)
