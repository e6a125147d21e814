"""The recursive model: levels of AR or MAR transformers from the image down to the pixel.

Decided here: a pass goes breadth first, all sub-patches of all images of a level in one batch. It
returns the negative log-probabilities of the values, with the image that each belongs to;
`losses.py` makes the training loss and the likelihood of them.

Shapes: B images of side S; R rows (patches of side P) of a level, T sub-patches of side p of a row,
N of them predicted and handed on; n conditions of a row, C their width, D the level's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fractal_model.common.errors import FractalError
from fractal_model.config.model import MAX_CONDITIONS, ModelConfig
from fractal_model.model.ar import ARLevel
from fractal_model.model.conditions import Conditions
from fractal_model.model.kernels.spare_rows import spare_rows, with_spare
from fractal_model.model.mar import MARLevel
from fractal_model.model.patches import mean_colour, patchify
from fractal_model.model.pixel import PixelNetwork
from fractal_model.model.pretrained import PretrainedModule

NO_CLASS = -1
"""The label of an image without a class: it gets the null embedding."""


@dataclass(frozen=True)
class Rows:
    """Where the rows of a level lie: image, and top-left pixel within it; each (R,) int64."""

    image: Tensor
    top: Tensor
    left: Tensor

    @classmethod
    def whole_images(cls, count: int, device: torch.device) -> Rows:
        zeros = torch.zeros(count, dtype=torch.long, device=device)
        return cls(torch.arange(count, device=device), zeros, zeros)

    def sub_patches(self, mask: Tensor, size: int) -> Rows:
        """The rows one level down: the sub-patches of side `size` where (R, T) `mask` is true."""
        row, token = mask.nonzero(as_tuple=True)
        grid = round(mask.shape[1] ** 0.5)
        top, left = token // grid * size, token % grid * size
        return Rows(self.image[row], self.top[row] + top, self.left[row] + left)

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
    """Of the guiding pixels of each level that has them."""


MaskSource = Callable[[int, Rows], Tensor]
"""Called with a MAR level's number and its rows; returns the (R, T) bool mask, at least one true
in each row."""
GuideSource = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From mean colours (R, 3) in 0 … 255 to the 8-bit targets (R, 3) int64 and the values fed in."""


def exact_guides(means: Tensor) -> tuple[Tensor, Tensor]:
    """Feed in what was predicted: the mean rounded to 8 bits. This makes a true likelihood."""
    targets = means.round().long()
    return targets, targets.float()


class FractalModel(PretrainedModule):
    """A fractal generative model. Weights are uninitialised memory's defaults until `initialise`
    or a checkpoint fills them."""

    __call__: Callable[..., Pass]
    levels: Sequence[ARLevel | MARLevel]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        root_width = config.levels[0].condition_width
        self.class_embedding = nn.Embedding(config.num_classes, root_width)
        self.null_embedding = nn.Parameter(torch.zeros(1, root_width))
        kinds = {"ar": ARLevel, "mar": MARLevel}
        levels = nn.ModuleList(kinds[level.generator](level) for level in config.levels)
        self.add_module("levels", levels)
        self.pixel = PixelNetwork(config.pixel)

    def forward(
        self, images: Tensor, labels: Tensor, *, masks: MaskSource, guides: GuideSource
    ) -> Pass:
        """Predict the values of images from the true values before them (paper, section 4).

        (B, 3, S, S) uint8 images and (B,) labels. Each level turns R patches (R, 3, P, P) and their
        conditions (R, n, C) into conditions (N, n, D) of the sub-patches (N, 3, p, p) that it
        predicts; these are the patches of the next level, down to the pixels.
        """
        self._require_size(images)
        patches, conditions = images, self.root(labels)
        rows = Rows.whole_images(len(images), images.device)
        weight = torch.ones(len(images), device=images.device)
        guide_nats = []
        for i, level in enumerate(self.levels):
            sub_patches = patchify(patches, level.config.sub_patch_size)
            if isinstance(level, MARLevel):
                mask = masks(i, rows)
            else:
                mask = sub_patches.new_ones(sub_patches.shape[:2], dtype=torch.bool)
            spare = self._spare_rows(i, patches)  # for the processor alone: they change no value
            colours = None
            if isinstance(level, MARLevel) and level.config.guiding_pixel:
                targets, colours = guides(mean_colour(patches))
                nats = channel_nats(level.guide_network, conditions, targets, spare)
                share = 1 / level.config.patch_size**2
                guide_nats.append(ValueNats(nats, rows.image, weight, share))
            conditions = self._hand_on(i, sub_patches, mask, conditions, colours, spare)
            patches = sub_patches[mask]
            # A row's share in its image is split evenly over its predicted sub-patches.
            weight = (weight / mask.sum(1))[:, None].expand_as(mask)[mask]
            rows = rows.sub_patches(mask, level.config.sub_patch_size)
        spare = self._spare_rows(len(self.levels), patches)
        nats = channel_nats(self.pixel, conditions, patches.flatten(1).long(), spare)
        return Pass(ValueNats(nats, rows.image, weight, 1.0), tuple(guide_nats))

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

    def _hand_on(
        self,
        i: int,
        sub_patches: Tensor,
        mask: Tensor,
        conditions: Conditions,
        colours: Tensor | None,
        spare: int,
    ) -> Conditions:
        """The conditions (N, n, D) of the masked sub-patches of level i, row by row."""
        level, content = self.levels[i], with_spare(sub_patches, spare)
        conditions = Conditions(with_spare(conditions.values_NCD, spare))
        if isinstance(level, ARLevel):
            return Conditions(level(content, conditions).values_NCD[: mask.numel()])
        colours = None if colours is None else with_spare(colours, spare)
        hidden, read = with_spare(mask, spare), self.config.conditions_read(i)
        return level(content, hidden, conditions, guides=colours, read=read)

    def _spare_rows(self, i: int, patches: Tensor) -> int:
        """Spare rows for part i: below a MAR level, whose masks vary the number of rows."""
        varies = any(level.generator == "mar" for level in self.config.levels[:i])
        return spare_rows(patches) if varies else 0

    def _require_size(self, images: Tensor) -> None:
        side = self.config.image_size
        if images.shape[1:] != (3, side, side) or images.dtype != torch.uint8:
            raise FractalError(
                f"images of shape {tuple(images.shape)} and type {images.dtype} given: this model "
                f"takes (batch, 3, {side}, {side}) uint8; prepare the data set at {side} pixels"
            )


def channel_nats(
    network: PixelNetwork, conditions: Conditions, values_N3: Tensor, spare: int
) -> Tensor:
    """(N, 3) float32: negative log-probabilities of 8-bit values under their conditions; the
    network computes `spare` more rows."""
    count = len(values_N3)
    fed = with_spare(conditions.middle, spare), with_spare(values_N3, spare)
    logits = (channel[:count] for channel in network.channel_logits(*fed))
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
