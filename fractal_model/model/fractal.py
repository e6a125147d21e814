"""The recursive model: levels of AR or MAR transformers from the image down to the pixel.

Decided here: a pass goes breadth first, with all sub-patches of all images of a level in one batch.
It returns the negative log-probability of each value and the image that the value belongs to.
`losses.py` computes the training loss and the likelihood from them.

Shapes: B images of side S; R rows (patches of side P) of a level, T sub-patches of side p of a row,
N sub-patches predicted in all rows; n conditions of a row, C their width, D width of the level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fractal_model.common.devices import copy_to
from fractal_model.common.errors import FractalError
from fractal_model.config.model import MAX_CONDITIONS, ModelConfig
from fractal_model.model.ar import ARLevel
from fractal_model.model.conditions import Conditions
from fractal_model.model.kernels.row_padding import pad_rows, padding_rows
from fractal_model.model.mar import MARLevel
from fractal_model.model.patches import mean_colour, patchify
from fractal_model.model.pixel import PixelNetwork
from fractal_model.model.pretrained import PretrainedModule

NO_CLASS = -1
"""The label of an image without a class: it gets the null embedding."""


@dataclass(frozen=True)
class Rows:
    """The places of R patches: number of the image, top and left pixel in it, each (R,) int64."""

    image: Tensor
    top: Tensor
    left: Tensor

    @classmethod
    def whole_images(cls, count: int, device: torch.device) -> Rows:
        """Return the rows of level 0, one for each of `count` whole images."""
        zeros = torch.zeros(count, dtype=torch.long, device=device)
        return cls(torch.arange(count, device=device), zeros, zeros)

    def sub_patches(self, row: Tensor, token: Tensor, grid: int, size: int) -> Rows:
        """Return the places of N sub-patches of side `size`, given the row and the number in it of
        each, (N,). `grid` is the number of sub-patches along a side of a row."""
        top, left = token // grid * size, token % grid * size
        return Rows(self.image[row], self.top[row] + top, self.left[row] + left)

    def pixels(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the image, row and column of each pixel of the patches, which have side `size`, as
        indices that broadcast to (R, size, size)."""
        along = torch.arange(size, device=self.image.device)
        top, left = self.top[:, None] + along, self.left[:, None] + along
        return self.image[:, None, None], top[:, :, None], left[:, None, :]

    def index(self, image_size: int, size: int) -> Tensor:
        """Return the number of each patch in its image, (R,). The patches have side `size` and are
        numbered row by row from 0."""
        return self.top // size * (image_size // size) + self.left // size


@dataclass(frozen=True)
class ValueNats:
    """Negative log-probabilities of 8-bit values, and their weights in the mean over an image."""

    nats: Tensor
    """Negative log-probabilities of red, green and blue, (N, 3) float32."""
    rows: Rows
    """Places of the N pixels or patches that the values belong to."""
    weight: Tensor
    """Weight of each row of `nats` in its image's mean, (N,); an image's weights add up to 1."""
    per_image_value: float
    """Number of these values divided by the number of the image's values: 1 for pixels, 1/256 for
    the guiding pixels of 16 × 16 patches."""

    @property
    def image(self) -> Tensor:
        """Number, in the batch, of the image that the values belong to, (N,) int64."""
        return self.rows.image


@dataclass(frozen=True)
class Pass:
    """The negative log-probabilities of all values that one pass through the levels predicts."""

    pixels: ValueNats
    guides: tuple[ValueNats, ...]
    """Negative log-probabilities of guiding pixels, one entry for each level that has them."""


@dataclass(frozen=True)
class _Predicted:
    """The N sub-patches that a level predicts in its R rows."""

    mask: Tensor | None
    """True for the predicted sub-patches of a MAR level, (R, T) bool; None at an AR level."""
    row: Tensor
    """Row of each predicted sub-patch, (N,) int64."""
    token: Tensor
    """Number of each predicted sub-patch in its row, (N,) int64."""
    count: Tensor
    """Number of predicted sub-patches of each row, (R,) int64."""


MaskSource = Callable[[int, Rows], Tensor]
"""Function that chooses which sub-patches a MAR level predicts. It gets the level's number and
rows, and returns a mask (R, T) bool with at least one True in each row. If the mask is on the CPU,
a GPU need not finish its work before the host knows how many sub-patches there are."""
GuideSource = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Function that prepares guiding pixels. It gets mean colours (R, 3) in 0 … 255, and returns the
8-bit targets, (R, 3) int64, and the colours that the level reads, (R, 3) float."""
ContextSource = Callable[[Tensor], Tensor]
"""Function that gets a level's sub-patches, (R, T, 3, p, p) uint8, and returns those that the level
reads in their place, of the same shape."""


def exact_guides(means: Tensor) -> tuple[Tensor, Tensor]:
    """A `GuideSource` for likelihoods: round the mean colours to 8 bits, and return them both as
    targets and as the colours that the level reads. If the level read more exact colours than the
    targets, the result would not be a likelihood."""
    targets = means.round().long()
    return targets, targets.float()


@dataclass(frozen=True)
class Guide:
    """A model whose predictions guide the sampling of another one (autoguidance)."""

    model: FractalModel
    checksum: str
    """Checksum of the guide's weights."""


class FractalModel(PretrainedModule):
    """A fractal generative model. `initialise` or a checkpoint must set its weights before use."""

    guide: Guide | None = None
    """Guide for sampling settings that name one. It is no part of the model's weights."""

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
        self,
        images: Tensor,
        labels: Tensor,
        *,
        masks: MaskSource,
        guides: GuideSource,
        context: ContextSource | None = None,
    ) -> Pass:
        """Return the negative log-probability of each predicted value, given the true values known
        before it (paper, section 4). `images` are (B, 3, S, S) uint8, `labels` (B,) classes or
        NO_CLASS; labels on the CPU are checked without waiting for a GPU. `masks` chooses the
        sub-patches that MAR levels predict, `guides` prepares guiding pixels, `context` changes the
        sub-patches that levels read. Each level reads R patches (R, 3, P, P) with conditions (R, n,
        C), and gives conditions (N, n, D) to the N sub-patches (N, 3, p, p) that it predicts. These
        are the next level's patches, down to the pixels. FractalError: images or labels do not fit
        the model."""
        self._require_size(images)
        patches, conditions = images, self.root(labels)
        rows = Rows.whole_images(len(images), images.device)
        weight = torch.ones(len(images), device=images.device)
        guide_nats = []
        for i, level in enumerate(self.levels):
            sub_patches = patchify(patches, level.config.sub_patch_size)
            predicted = self._predicted(i, rows, masks)
            padding = self._padding_rows(i, patches)
            colours = None
            if isinstance(level, MARLevel) and level.config.guiding_pixel:
                targets, colours = guides(mean_colour(patches))
                nats = channel_nats(level.guide_network, conditions, targets, padding)
                share = 1 / level.config.patch_size**2
                guide_nats.append(ValueNats(nats, rows, weight, share))
            inputs = sub_patches if context is None else context(sub_patches)
            conditions = self._run_level(i, inputs, predicted, conditions, colours, padding)
            row, token = predicted.row, predicted.token
            patches = sub_patches[row, token]
            # A row's weight in its image is split evenly over the predicted sub-patches.
            weight = (weight / predicted.count)[row]
            size = level.config.sub_patch_size
            rows = rows.sub_patches(row, token, level.config.grid, size)
        padding = self._padding_rows(len(self.levels), patches)
        nats = channel_nats(self.pixel, conditions, patches.flatten(1).long(), padding)
        return Pass(ValueNats(nats, rows, weight, 1.0), tuple(guide_nats))

    @property
    def device(self) -> torch.device:
        """Device that the weights are on."""
        return self.null_embedding.device

    def root(self, labels: Tensor) -> Conditions:
        """Return the conditions of level 0, (B, n, C): the class embedding of each label (B,), or
        the null embedding for NO_CLASS, repeated n times. FractalError: a class is unknown."""
        highest = self.config.num_classes - 1
        if labels.numel() and not bool(((labels >= NO_CLASS) & (labels <= highest)).all()):
            raise FractalError(
                f"the classes are {int(labels.min())} … {int(labels.max())}, expected "
                f"0 … {highest}, or {NO_CLASS} for an image without a class"
            )
        labels = copy_to(self.device, labels)
        embedded = self.class_embedding(labels.clamp(min=0))
        embedded = torch.where((labels == NO_CLASS)[:, None], self.null_embedding, embedded)
        return Conditions(embedded[:, None].expand(-1, MAX_CONDITIONS, -1))

    def _predicted(self, i: int, rows: Rows, masks: MaskSource) -> _Predicted:
        """Return the sub-patches that level i predicts: those that `masks` chooses for a MAR level,
        all of them for an AR level."""
        count, tokens = len(rows.image), self.levels[i].config.tokens
        if isinstance(self.levels[i], MARLevel):
            mask = masks(i, rows)
            chosen = (mask, *mask.nonzero(as_tuple=True), mask.sum(1))
            return _Predicted(*(copy_to(self.device, tensor) for tensor in chosen))
        row = torch.arange(count, device=self.device).repeat_interleave(tokens)
        token = torch.arange(tokens, device=self.device).repeat(count)
        return _Predicted(None, row, token, torch.full_like(rows.image, tokens))

    def _run_level(
        self,
        i: int,
        sub_patches: Tensor,
        predicted: _Predicted,
        conditions: Conditions,
        colours: Tensor | None,
        padding: int,
    ) -> Conditions:
        """Return the conditions (N, n, D) that level i gives to the `predicted` sub-patches. The
        level also computes `padding` rows of zeros, which are left out of the result."""
        level, tokens = self.levels[i], pad_rows(sub_patches, padding)
        conditions = Conditions(pad_rows(conditions.values_NCD, padding))
        if isinstance(level, ARLevel):
            return Conditions(level(tokens, conditions).values_NCD[: len(predicted.row)])
        assert predicted.mask is not None
        return level(
            tokens,
            pad_rows(predicted.mask, padding),
            conditions,
            guides=None if colours is None else pad_rows(colours, padding),
            selected=(predicted.row, predicted.token),
            count=self.config.conditions_read(i),
        )

    def _padding_rows(self, i: int, patches: Tensor) -> int:
        """Return how many padding rows to add to the batch of level i, or of the pixel network if i
        is the number of levels. It is 0 unless a level above is a MAR level: masks then make the
        number of rows differ between batches."""
        varies = any(level.generator == "mar" for level in self.config.levels[:i])
        return padding_rows(patches) if varies else 0

    def _require_size(self, images: Tensor) -> None:
        side = self.config.image_size
        if images.shape[1:] != (3, side, side) or images.dtype != torch.uint8:
            raise FractalError(
                f"images of shape {tuple(images.shape)} and type {images.dtype}: this model takes "
                f"(batch, 3, {side}, {side}) uint8; prepare the data set at {side} pixels"
            )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Within the context the model is in evaluation mode, without dropout."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def channel_nats(
    network: PixelNetwork, conditions: Conditions, values_N3: Tensor, padding: int
) -> Tensor:
    """Return the negative log-probabilities (N, 3) float32 that `network` gives to the 8-bit values
    `values_N3`. The `padding` rows of zeros that it also computes are not in the result."""
    inputs = pad_rows(conditions.middle, padding), pad_rows(values_N3, padding)
    return network.nats(*inputs, count=len(values_N3))


def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Initialise the weights of a model, or of a part of it, as published. Linear weights are
    Xavier-uniform, norm weights 1, biases 0. Embeddings of class, null, mask and position and the
    codebooks of the pixel networks are normal with standard deviation 0.02."""
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
