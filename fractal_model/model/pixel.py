"""The pixel network: the last level of the fractal (paper, section 4, "pixel-by-pixel").

It predicts red, then green given red, then blue given both, each as one of 256 classes. A network
of the same kind predicts guiding pixels. The blue value is never an input: nothing comes after it.

Shapes: N pixels, C width of the condition, W width of the network, V = 256 possible values.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fractal_model.config.model import PixelConfig
from fractal_model.model.attention import Cache
from fractal_model.model.blocks import NORM_EPSILON, Block, run_blocks, vit_block
from fractal_model.model.kernels.cross_entropy import linear_cross_entropy
from fractal_model.model.kernels.linear import Linear, linear
from fractal_model.model.patches import CHANNEL_VALUES

CHANNELS = 3


class PixelNetwork(nn.Module):
    """A causal transformer that gives the logits of a pixel's red, green and blue value."""

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
        blocks = (
            vit_block(width, heads, causal=True, dropout=0.0, qk_norm=config.qk_norm)
            for _ in range(config.blocks)
        )
        self.add_module("blocks", nn.ModuleList(blocks))
        self.norm_out = nn.LayerNorm(width, eps=NORM_EPSILON)

    def forward(self, conditions_NC: Tensor, values_N3: Tensor) -> Tensor:
        """Return the logits of red, green and blue, (N, 3, V) float32. Each depends on the
        condition and on the true values, `values_N3` 0 … 255 int64, of the channels before."""
        hidden = self._hidden(conditions_NC, values_N3)
        return torch.stack([self._logits(hidden[:, c], c) for c in range(CHANNELS)], dim=1)

    def nats(self, conditions_NC: Tensor, values_N3: Tensor, count: int) -> Tensor:
        """Return the negative log-probability of each value of the first `count` pixels, (count, 3)
        float32."""
        hidden = self._hidden(conditions_NC, values_N3)[:count]
        with torch.autocast(hidden.device.type, enabled=False):
            channels = [
                linear_cross_entropy(
                    hidden[:, c].float(), *self._logit_weights(c), values_N3[:count, c]
                )
                for c in range(CHANNELS)
            ]
        return torch.stack(channels, dim=1)

    def _hidden(self, conditions_NC: Tensor, values_N3: Tensor) -> Tensor:
        """Return the outputs (N, 3, W) from which `_logits` predicts red, green and blue."""
        tokens = [
            self.first_token(conditions_NC),
            self.codebooks[0](values_N3[:, 0]),
            self.codebooks[1](values_N3[:, 1]),
        ]
        hidden = run_blocks(self.blocks, self.norm_in(torch.stack(tokens, dim=1)))
        normed: Tensor = self.norm_out(hidden)
        return normed

    def first_token(self, conditions_NC: Tensor) -> Tensor:
        """Return the input token (N, W) from which `step` predicts red: the condition, embedded."""
        return self.condition(conditions_NC)

    def next_token(self, channel: int, values_N: Tensor) -> Tensor:
        """Embed values (N,) of `channel`, 0 … 255, as input token (N, W) of the next channel."""
        token: Tensor = self.codebooks[channel](values_N)
        return token

    def step(self, token_NW: Tensor, channel: int, caches: Sequence[Cache]) -> Tensor:
        """Return the logits of `channel`, (N, V) float32, from its input token. `caches`, one for
        each block, hold the keys and values of the channels before."""
        hidden = run_blocks(self.blocks, self.norm_in(token_NW[:, None]), caches=caches)
        return self._logits(self.norm_out(hidden[:, 0]), channel)

    def _logits(self, hidden_NW: Tensor, channel: int) -> Tensor:
        with torch.autocast(hidden_NW.device.type, enabled=False):
            return linear(hidden_NW.float(), *self._logit_weights(channel))

    def _logit_weights(self, channel: int) -> tuple[Tensor, Tensor]:
        """Return weight (V, W) and bias (V,) of the logits of `channel`."""
        return self.codebooks[channel].weight, self.biases[channel][0]
