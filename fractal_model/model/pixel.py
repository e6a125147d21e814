"""The pixel network: the last level of the fractal (paper, section 4, "pixel-by-pixel").

It predicts red, then green given red, then blue given both, as categories of 8 bits. The same
network predicts guiding pixels. The blue value is never fed in: nothing comes after it.

Shapes: N pixels, C width of the condition, W width, V = 256 values.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fractal_model.config.model import PixelConfig
from fractal_model.model.attention import FixedCache, KeyValueCache
from fractal_model.model.blocks import NORM_EPSILON, Block, run_blocks, vit_block
from fractal_model.model.kernels.linear import Linear, linear
from fractal_model.model.patches import CHANNEL_VALUES

CHANNELS = 3


class PixelNetwork(nn.Module):
    """Logits of a pixel's three channels, each given the condition and the channels before it."""

    __call__: Callable[..., Tensor]
    codebooks: Sequence[nn.Embedding]
    blocks: Sequence[Block]

    def __init__(self, config: PixelConfig) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.condition = Linear(config.condition_width, width)
        codebooks = (nn.Embedding(CHANNEL_VALUES, width) for _ in range(CHANNELS))
        self.add_module("codebooks", nn.ModuleList(codebooks))
        self.biases = nn.ParameterList(
            nn.Parameter(torch.zeros(1, CHANNEL_VALUES)) for _ in range(CHANNELS)
        )
        self.norm_in = nn.LayerNorm(width, eps=NORM_EPSILON)
        blocks = (vit_block(width, heads, causal=True, dropout=0.0) for _ in range(config.blocks))
        self.add_module("blocks", nn.ModuleList(blocks))
        self.norm_out = nn.LayerNorm(width, eps=NORM_EPSILON)

    def forward(self, conditions_NC: Tensor, values_N3: Tensor) -> Tensor:
        """Logits (N, 3, V) in float32 for 8-bit `values_N3` (int64)."""
        return torch.stack(self.channel_logits(conditions_NC, values_N3), dim=1)

    def channel_logits(self, conditions_NC: Tensor, values_N3: Tensor) -> list[Tensor]:
        """The logits of each channel in turn, (N, V) in float32."""
        tokens = [
            self.first_token(conditions_NC),
            self.codebooks[0](values_N3[:, 0]),
            self.codebooks[1](values_N3[:, 1]),
        ]
        hidden = run_blocks(self.blocks, self.norm_in(torch.stack(tokens, dim=1)))
        hidden = self.norm_out(hidden)
        return [self._logits(hidden[:, c], c) for c in range(CHANNELS)]

    def first_token(self, conditions_NC: Tensor) -> Tensor:
        """(N, W): what `step` takes for the red channel."""
        return self.condition(conditions_NC)

    def next_token(self, channel: int, values_N: Tensor) -> Tensor:
        """(N, W): what `step` takes for the channel after `channel`, whose values these are."""
        token: Tensor = self.codebooks[channel](values_N)
        return token

    def step(
        self, token_NW: Tensor, channel: int, caches: Sequence[KeyValueCache | FixedCache]
    ) -> Tensor:
        """Logits (N, V) of one channel from the newest token alone."""
        hidden = run_blocks(self.blocks, self.norm_in(token_NW[:, None]), caches=caches)
        return self._logits(self.norm_out(hidden[:, 0]), channel)

    def _logits(self, hidden_NW: Tensor, channel: int) -> Tensor:
        with torch.autocast(hidden_NW.device.type, enabled=False):
            weight, bias = self.codebooks[channel].weight, self.biases[channel][0]
            return linear(hidden_NW.float(), weight, bias)
