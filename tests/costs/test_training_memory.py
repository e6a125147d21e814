"""The formula agrees with the bytes that autograd keeps in a real training step."""

from __future__ import annotations

from functools import partial
from inspect import signature

import pytest
import torch
from torch import nn

from fractal_model.config.params import load_params
from fractal_model.config.training import CHECKPOINTING
from fractal_model.costs.training_memory import activations
from fractal_model.data.loader import Batch
from fractal_model.model import blocks, pixel
from fractal_model.model.kernels import attend
from fractal_model.model.kernels.cross_entropy import cross_entropy_in_parts
from fractal_model.training import trainer
from tests.support import random_images, tiny_config
from tests.support.masks import fixed_masks, shares
from tests.support.params import SHIPPED

IMAGES = 5  # So that no activation has the shape of a weight.
TOLERANCE = 0.02
"""Relative; the requirement is 10 %."""


def kept_by_autograd(stepper: trainer.Trainer, batch: Batch) -> int:
    """Bytes that autograd keeps, without the weights and their bfloat16 copies."""
    weights = {p.untyped_storage().data_ptr() for p in stepper.model.parameters()}
    weights |= {b.untyped_storage().data_ptr() for b in stepper.model.buffers()}
    shapes = {
        p.shape[::-1]
        for m in stepper.model.modules()
        if isinstance(m, nn.Linear)
        for p in [m.weight]
    }
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        is_copy = tensor.dtype == torch.bfloat16 and tensor.shape in shapes
        if storage.data_ptr() not in weights and not is_copy:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # Otherwise another storage could take its address.
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        stepper.step(batch)
    return sum(kept.values())


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize(
    ("precision", "checkpointing"),
    [
        ("float32", False),
        ("bfloat16", False),
        ("float32", "selective"),
        ("bfloat16", "selective"),
        ("bfloat16", True),
    ],
)
def test_kept_activations_agree_with_a_real_step(
    kind, precision, checkpointing, qk_norm, on_gpu, monkeypatch
):
    config = tiny_config(kind)
    levels = len(config.levels)
    config = tiny_config(
        kind,
        widths=(64,) * levels + (32,),
        blocks=(2,) * (levels + 1),
        heads=(4,) * (levels + 1),
        qk_norm=qk_norm,
    )
    monkeypatch.setattr(trainer, "training_masks", fixed_masks)
    monkeypatch.setattr(attend, "_uses_products", lambda *_: False)  # Fused, as for long sequences.
    if on_gpu:
        in_parts = partial(cross_entropy_in_parts, rows=7)
        monkeypatch.setattr(pixel, "linear_cross_entropy", in_parts)
    if checkpointing == "selective":
        if "respect_saved_tensors_hooks" not in signature(blocks.checkpoint).parameters:
            pytest.skip("this torch cannot count what selective checkpointing keeps")
        # By default what it keeps passes by the hooks that count.
        counted = partial(blocks.checkpoint, respect_saved_tensors_hooks=True)
        monkeypatch.setattr(blocks, "checkpoint", counted)
    recipe = (
        load_params(SHIPPED)
        .size("digits")
        .training.model_copy(
            update={
                "activation_checkpointing": checkpointing,
                "precision": precision,
                "batch_size": IMAGES,
            }
        )
    )
    stepper = trainer.Trainer(config, recipe, images=IMAGES)
    labels = torch.zeros(IMAGES, dtype=torch.long)
    batch = Batch(random_images(IMAGES, config.image_size), labels, labels)
    ours = activations(
        config,
        images=IMAGES,
        precision=precision,
        activation_checkpointing=checkpointing,
        shares=shares(config),
        on_gpu=on_gpu,
    )
    assert ours.kept == pytest.approx(kept_by_autograd(stepper, batch), rel=TOLERANCE)
    assert (ours.recomputed > 0) == bool(checkpointing)


def test_selective_checkpointing_lies_between_the_other_choices():
    config = tiny_config("mar", widths=(64, 64, 32), blocks=(2, 2, 2), heads=(4, 4, 4))
    inputs = {"images": IMAGES, "precision": "bfloat16", "shares": shares(config)}
    plain, selective, full = (
        activations(config, activation_checkpointing=choice, **inputs) for choice in CHECKPOINTING
    )
    assert plain.kept > selective.kept > full.kept
    assert 0 == plain.recomputed < selective.recomputed < full.recomputed
