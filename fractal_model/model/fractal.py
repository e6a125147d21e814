"""The recursive model: levels of AR or MAR transformers from the image down to the pixel.

Decided here: one pass goes breadth first, all sub-patches of all images of a level in one batch;
a pass returns log-probabilities of the values per pixel, with the row that each belongs to, and
what is made of them (training loss, likelihood) is somebody else's: see `losses.py`.

Shapes: B images of side S, R rows of a level, T sub-patches of a row, N rows handed on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fractal_model.common.errors import FractalError
from fractal_model.config.model import MAX_CONDITIONS, ModelConfig
from fractal_model.model.ar import ARLevel
from fractal_model.model.conditions import Conditions
from fractal_model.model.mar import MARLevel
from fractal_model.model.pixel import PixelNetwork
from fractal_model.model.pixels import mean_colour, patchify
from fractal_model.model.pretrained import PretrainedMixin

NO_CLASS = -1
"""The label of an image without a class: it gets the null embedding."""


@dataclass(frozen=True)
class Rows:
    """Where the rows of a level lie: image, and the top-left pixel within it; each (R,) int64."""

    image: Tensor
    top: Tensor
    left: Tensor

    @classmethod
    def whole_images(cls, count: int, device: torch.device) -> Rows:
        zeros = torch.zeros(count, dtype=torch.long, device=device)
        return cls(torch.arange(count, device=device), zeros, zeros)

    def sub_patches(self, chosen: Tensor, size: int) -> Rows:
        """The rows one level down: the sub-patches of side `size` where (R, T) `chosen` is true."""
        row, token = chosen.nonzero(as_tuple=True)
        grid = round(chosen.shape[1] ** 0.5)
        return Rows(
            self.image[row],
            self.top[row] + token // grid * size,
            self.left[row] + token % grid * size,
        )

    def index(self, image_size: int, size: int) -> Tensor:
        """Row-major number of each row among all patches of side `size` of its image."""
        return self.top // size * (image_size // size) + self.left // size


@dataclass(frozen=True)
class ValueNats:
    """Negative log-probabilities of 8-bit values, and what they weigh in their image's mean."""

    nats: Tensor
    """(N, 3) float32: red, green, blue."""
    image: Tensor
    """(N,) the image that the row belongs to."""
    weight: Tensor
    """(N,) share of the row in its image; sums to 1 over an image."""
    per_image_value: float
    """Values of this kind there are for each value of the image: 1 for pixels, 1/256 for the
    guiding pixels of 16 × 16 patches."""


@dataclass(frozen=True)
class Pass:
    """The outcome of one pass through all levels."""

    pixels: ValueNats
    guides: tuple[ValueNats, ...]
    level0: Conditions
    """What level 0 handed on."""


MaskSource = Callable[[int, Rows], Tensor]
"""Called with a MAR level's number and its rows; returns the (R, T) bool mask, at least one true
in each row."""
GuideSource = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From mean colours (R, 3) in 0 … 255 to the 8-bit targets (R, 3) int64 and the values fed in."""


def exact_guides(means: Tensor) -> tuple[Tensor, Tensor]:
    """Feed in what was predicted: the mean rounded to 8 bits. This makes a true likelihood."""
    targets = means.round().long()
    return targets, targets.float()


class FractalModel(nn.Module, PretrainedMixin):
    """A fractal generative model. Weights are uninitialised memory's defaults until `initialise`
    or a checkpoint fills them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        root_width = config.levels[0].condition_width
        self.class_embedding = nn.Embedding(config.num_classes, root_width)
        self.null_embedding = nn.Parameter(torch.zeros(1, root_width))
        self.levels = nn.ModuleList(
            (ARLevel if level.generator == "ar" else MARLevel)(level) for level in config.levels
        )
        self.pixel = PixelNetwork(config.pixel)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.null_embedding.device

    def root(self, labels: Tensor) -> Conditions:
        """(B,) classes, NO_CLASS for none, to level 0's conditions. FractalError: out of range."""
        highest = self.config.num_classes - 1
        if labels.numel() and not bool(((labels >= NO_CLASS) & (labels <= highest)).all()):
            raise FractalError(
                f"class {int(labels.min())} … {int(labels.max())} asked for: this model knows the "
                f"classes 0 … {highest}"
            )
        embedded = self.class_embedding(labels.clamp(min=0))
        embedded = torch.where((labels == NO_CLASS)[:, None], self.null_embedding, embedded)
        return Conditions(embedded[:, None].expand(-1, MAX_CONDITIONS, -1))

    def forward(
        self, images: Tensor, labels: Tensor, *, masks: MaskSource, guides: GuideSource
    ) -> Pass:
        """(B, 3, S, S) uint8 images, (B,) labels; all levels, teacher forced."""
        self._require_size(images)
        patches = images
        conditions = self.root(labels)
        rows = Rows.whole_images(len(images), images.device)
        weight = torch.ones(len(images), device=images.device)
        guide_nats, level0, masked, spare = [], None, False, 0
        for i, level in enumerate(self.levels):
            size = level.config.sub_patch_size
            tokens = patchify(patches, size)
            content = with_spare(tokens, spare)
            given = Conditions(with_spare(conditions.values_NCD, spare))
            if isinstance(level, ARLevel):
                mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool)
                conditions = Conditions(level(content, given).values_NCD[: mask.numel()])
            else:
                mask = masks(i, rows)
                fed = None
                if level.config.guiding_pixel:
                    targets, means = guides(mean_colour(patches))
                    nats = channel_nats(level.guide_network, given.middle, targets)
                    share = 1 / level.config.patch_size**2
                    guide_nats.append(ValueNats(nats, rows.image, weight, share))
                    fed = with_spare(means, spare)
                read = MAX_CONDITIONS if i == 0 else self.config.conditions_read(i)
                hidden = with_spare(mask, spare)
                conditions = level(content, hidden, given, guides=fed, read=read)
            level0 = conditions if level0 is None else level0
            weight = (weight / mask.sum(1))[:, None].expand_as(mask)[mask]
            rows = rows.sub_patches(mask, size)
            patches = tokens[mask]
            masked = masked or isinstance(level, MARLevel)
            spare = spare_rows(patches) if masked else 0
        values = patches.flatten(1).long()
        nats = channel_nats(self.pixel, with_spare(conditions.middle, spare), values)
        return Pass(ValueNats(nats, rows.image, weight, 1.0), tuple(guide_nats), level0)

    def _require_size(self, images: Tensor) -> None:
        side = self.config.image_size
        if images.shape[1:] != (3, side, side) or images.dtype != torch.uint8:
            raise FractalError(
                f"images of shape {tuple(images.shape)} and type {images.dtype} given: this model "
                f"takes (batch, 3, {side}, {side}) uint8; prepare the data set at {side} pixels"
            )


def spare_rows(rows: Tensor) -> int:
    """How many rows more a CPU computes, so that masks, which leave another number of them each
    time, make few shapes: sixteen between a power of two and the next. oneDNN compiles a product
    for its shape, which takes longer than a small one does."""
    count = len(rows)
    step = max(1, 2 ** (count.bit_length() - 1) // 16)
    return -count % step if rows.device.type == "cpu" else 0


def with_spare(x: Tensor, spare: int) -> Tensor:
    """(N, ...) and so many rows of zeros."""
    return torch.cat([x, x.new_zeros(spare, *x.shape[1:])]) if spare else x


def channel_nats(network: PixelNetwork, conditions_NC: Tensor, values_N3: Tensor) -> Tensor:
    """(N, 3) negative log-probabilities of 8-bit values, float32, under (N + spare, C) conditions,
    the spare ones last."""
    count = len(values_N3)
    fed = with_spare(values_N3, len(conditions_NC) - count)
    logits = (x[:count] for x in network.channel_logits(conditions_NC, fed))
    pairs = zip(logits, values_N3.unbind(1), strict=True)
    return torch.stack([F.cross_entropy(*pair, reduction="none") for pair in pairs], dim=1)


def initialise(model: FractalModel, generator: torch.Generator) -> None:
    """Published initialisation: linear weights Xavier-uniform, biases 0; norms 1 and 0; class,
    null, mask and position embeddings and codebooks normal with standard deviation 0.02."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02, generator=generator)
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.reset_parameters()
    for name, parameter in model.named_parameters():
        if name.endswith(("null_embedding", "mask_token", "positions")):
            nn.init.normal_(parameter, std=0.02, generator=generator)
