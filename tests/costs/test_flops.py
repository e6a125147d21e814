"""The formulas against torch's own count of the real modules' products."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import accumulate
from operator import mul

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fractal_model.config.model import ModelConfig
from fractal_model.config.params import load_params
from fractal_model.config.sampling import SamplingConfig
from fractal_model.costs.flops import (
    optimizer_flops,
    pass_products,
    sampling_flops,
    training_flops,
)
from fractal_model.costs.shapes import expected_masked_share, peak_shares, training_shares
from fractal_model.data.loader import Batch
from fractal_model.model.blocks import checkpoint_activations
from fractal_model.model.fractal import NO_CLASS, FractalModel, Guide, Rows
from fractal_model.model.kernels.linear import FLOP_FORMULAS
from fractal_model.model.losses import training_loss
from fractal_model.sampling.sampler import Sampler
from fractal_model.training import trainer
from fractal_model.training.masks import training_masks
from tests.support import random_images, tiny_config, tiny_model
from tests.support.masks import fixed_masks, masked, shares
from tests.support.params import SHIPPED, SIZES

PARAMS = load_params(SHIPPED)
TOLERANCE = 1e-6
"""Relative; the requirement is 2 %."""


class KnownMasks(TorchDispatchMode):
    """Lets the meta device run operations that depend on data: each row of a MAR level has
    `masked(T)` masked sub-patches, and every label is valid."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        count = {
            v.tokens: masked(v.tokens) if v.generator == "mar" else v.tokens for v in config.levels
        }
        self._count = lambda mask: len(mask) * count[mask.shape[1]]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            return True
        if func is torch.ops.aten.nonzero.default:
            return args[0].new_empty((self._count(args[0]), 2), dtype=torch.long)
        return func(*args, **(kwargs or {}))


def counted_on_meta(config: ModelConfig, *, checkpointing: bool) -> tuple[int, int]:
    """Operations of the forward pass and of forward and backward, for one image."""
    with torch.device("meta"):
        model = FractalModel(config).train()
    if checkpointing:
        checkpoint_activations(model)
    with torch.device("meta"), FlopCounterMode(display=False) as counter, KnownMasks(config):
        images = torch.empty((1, 3, config.image_size, config.image_size), dtype=torch.uint8)
        outcome = model(
            images,
            torch.empty(1, dtype=torch.long),
            masks=lambda level, rows: torch.empty(
                (len(rows.image), config.levels[level].tokens), dtype=torch.bool
            ),
            guides=lambda means: (means.long(), means),
        )
        forward = counter.get_total_flops()
        training_loss(outcome, red_weight=config.red_weight).backward()
    return forward, counter.get_total_flops()


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device has no autocast, which changes types but no count."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


@pytest.mark.parametrize("size", SIZES)
def test_every_size_agrees_with_the_counter(size):
    config = PARAMS.size(size).model
    forward, both = counted_on_meta(config, checkpointing=False)
    assert sum(p.forward for p in pass_products(config, shares(config))) == pytest.approx(
        forward, rel=TOLERANCE
    )
    ours = training_flops(config, shares(config), activation_checkpointing=False)
    assert sum(ours) == pytest.approx(both, rel=TOLERANCE)


@pytest.mark.parametrize("size", ["digits", "mar-b"])
def test_activation_checkpointing_agrees_with_the_counter(size):
    config = PARAMS.size(size).model
    _, both = counted_on_meta(config, checkpointing=True)
    ours = training_flops(config, shares(config), activation_checkpointing=True)
    assert sum(ours) == pytest.approx(both, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("checkpointing", "optimizer"),
    [(False, "adamw"), ("selective", "adamw"), (True, "adamw"), (False, "muon")],
)
def test_the_formula_agrees_with_a_real_training_step(kind, checkpointing, optimizer, monkeypatch):
    config = tiny_config(kind)
    monkeypatch.setattr(trainer, "training_masks", fixed_masks)
    # Recomputation also repeats the last of oneDNN's products, but not of torch's.
    monkeypatch.setattr("fractal_model.model.kernels.linear._HAS_ONEDNN", checkpointing is not True)
    changes = {"activation_checkpointing": checkpointing, "optimizer": optimizer}
    recipe = PARAMS.size("digits").training.model_copy(update={**changes, "batch_size": 3})
    stepper = trainer.Trainer(config, recipe, images=3)
    batch = Batch(random_images(3, config.image_size), torch.arange(3), torch.arange(3))
    with sdpa_kernel(SDPBackend.MATH), flop_counter() as counter:
        stepper.step(batch)
    ours = training_flops(config, shares(config), activation_checkpointing=checkpointing)
    update = optimizer_flops(config, optimizer)
    assert (update > 0) == (optimizer == "muon")
    assert 3 * sum(ours) + update == pytest.approx(counter.get_total_flops(), rel=TOLERANCE)


def flop_counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS)


@pytest.mark.parametrize(
    ("guidance", "interval"),
    [(1.0, (0.0, 1.0)), (3.0, (0.0, 1.0)), (3.0, (0.0, 0.6)), (3.0, (0.3, 0.7)), (3.0, (0.7, 1.0))],
)
@pytest.mark.parametrize("labels", [[0, 1, 2], [NO_CLASS] * 3])
def test_the_formula_agrees_with_a_real_run_of_the_sampler(
    kind, guidance, interval, labels, monkeypatch
):
    # Such small models are computed with spare rows, which exist only for the rounding.
    monkeypatch.setattr("fractal_model.model.kernels.linear._ONEDNN_FEWEST", 1)
    model = tiny_model(kind)
    steps = tuple(v.tokens if v.generator == "ar" else v.tokens // 2 for v in model.config.levels)
    settings = SamplingConfig(guidance=guidance, guidance_interval=interval, iterations=steps)
    # The counter does not know the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), flop_counter() as counter:
        Sampler(model, settings)(torch.tensor(labels), [0, 1, 2])
    ours = sampling_flops(model.config, settings, with_class=labels[0] != NO_CLASS)
    counted = counter.get_total_flops() - shared_by_rows(model.config, steps)
    assert 3 * sum(ours) == pytest.approx(counted, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("interval", "guided"), [((0.0, 1.0), 4), ((0.3, 0.7), 1), ((0.7, 1.0), 2)]
)
def test_the_formula_agrees_with_a_run_that_has_a_guide(kind, interval, guided, monkeypatch):
    """`guided`: number of level 0's four steps that have guidance."""
    monkeypatch.setattr("fractal_model.model.kernels.linear._ONEDNN_FEWEST", 1)
    model, count = tiny_model(kind), len(tiny_config(kind).levels)
    guide = tiny_model(kind, widths=(8,) * count + (4,), heads=(2,) * count + (1,))
    model.guide = Guide(guide, "")
    settings = SamplingConfig(guidance=3.0, guidance_interval=interval, guide="guide")
    with sdpa_kernel(SDPBackend.MATH), flop_counter() as counter:
        Sampler(model, settings)(torch.arange(3), [0, 1, 2])
    steps = settings.level_iterations(model.config)
    shared = shared_by_rows(model.config, steps)
    shared += shared_by_rows(guide.config, (guided, *steps[1:]))
    ours = sampling_flops(model.config, settings, guide=guide.config)
    assert 3 * sum(ours) == pytest.approx(counter.get_total_flops() - shared, rel=TOLERANCE)


def shared_by_rows(config: ModelConfig, steps: tuple[int, ...]) -> int:
    """Operations of masked sub-patches in first blocks, which the rows of a call share."""
    calls = accumulate(steps[:-1], mul, initial=1)
    levels = zip(config.levels, calls, strict=True)
    return sum(n * 6 * v.tokens * v.width**2 for v, n in levels if v.generator == "mar")


@pytest.mark.parametrize("mask_ratio", ["published", "uniform", 0.3, 0.7])
@pytest.mark.parametrize("tokens", [4, 16, 256])
def test_the_expected_share_is_that_of_the_masks_drawn(tokens, mask_ratio):
    rows = Rows.whole_images(40_000 // tokens * 4, torch.device("cpu"))
    drawn = training_masks([tokens], torch.Generator().manual_seed(0), mask_ratio)(0, rows)
    per_row = drawn.double().mean(1)
    error = per_row.std() / len(per_row) ** 0.5
    assert abs(per_row.mean() - expected_masked_share(tokens, mask_ratio)) < 4 * error


@pytest.mark.parametrize("images", [1, 2, 3, 8])
def test_the_share_for_the_memory_is_the_largest_that_uniform_masks_reach(images):
    config, rows = tiny_config("mar"), Rows.whole_images(images, torch.device("cpu"))
    tokens = [level.tokens for level in config.levels]
    draw = training_masks(tokens, torch.Generator().manual_seed(0), "uniform")
    largest = max(draw(0, rows).double().mean().item() for _ in range(200))
    limit, *below = peak_shares(config, "uniform", images)
    assert limit - 1 / tokens[0] <= largest <= limit
    assert below == [(tokens[1] + 1) / (2 * tokens[1])]
    assert peak_shares(config, "published", images) == training_shares(config, "published")
