"""The published code (github.com/LTH14/fractalgen) on the same GPU, as its own scripts use it.

Decided here: nothing of it is copied. A folder with a checkout is put on the import path, and its
models are built with the settings of its README. Training has its automatic float16 with a gradient
scaler, AdamW, clipping and activation checkpointing, sampling the same automatic float16.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from fractal_model.common.errors import FractalError
from fractal_model.config.params import Size
from fractal_model.model.patches import normalise

_FUNCTIONS = {"mar-64": "fractalmar_in64", "mar-l": "fractalmar_large_in256"}
"""The function of the published code that makes the model of a size."""


def published_model(folder: Path, size: Size) -> Any:
    """The published model of a size on the GPU. FractalError: the folder has no published code."""
    if not (folder / "models" / "fractalgen.py").is_file():
        raise FractalError(f"{folder} has no models/fractalgen.py: clone the published code there")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    last = size.model.levels[-1]
    build = getattr(import_module("models.fractalgen"), _FUNCTIONS[size.name])
    model = build(
        label_drop_prob=size.training.label_drop,
        class_num=size.model.num_classes,
        attn_dropout=last.dropout,
        proj_dropout=last.dropout,
        guiding_pixel=last.guiding_pixel,
        num_conds=last.conditions,
        r_weight=size.model.red_weight,
        grad_checkpointing=True,
    )
    return model.cuda()


def published_training(folder: Path, size: Size, batch: int) -> Callable[[], object]:
    """A function that does one training step of the published code on noise."""
    model, side = published_model(folder, size).train(), size.model.image_size
    recipe = size.training
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=recipe.betas)
    scaler = torch.amp.GradScaler("cuda")
    # The published loss looks colours up, so they must be those of pixels.
    pixels = torch.randint(0, 256, (batch, 3, side, side), device="cuda", dtype=torch.uint8)
    images = normalise(pixels)
    labels = torch.arange(batch, device="cuda")

    def step() -> None:
        with torch.autocast("cuda", torch.float16):
            loss = model(images, labels)
        loss.item()  # It reads the loss in each step.
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def published_sampling(folder: Path, size: Size, batch: int) -> Callable[[], object]:
    """A function that samples a batch as the published code does, with the size's settings."""
    model, settings = published_model(folder, size).eval(), size.sampling
    labels = torch.arange(batch, device="cuda")

    def draw(iterations: Sequence[int] = settings.iterations) -> None:
        with torch.no_grad(), torch.autocast("cuda", torch.float16):
            embedded = model.class_emb(labels)
            null = model.fake_latent.repeat(batch, 1)
            model.sample(
                cond_list=[torch.cat([embedded, null])] * 5,  # It always makes five.
                num_iter_list=list(iterations),
                cfg=settings.guidance,
                cfg_schedule="linear",
                temperature=settings.logit_scale,
                filter_threshold=settings.filter_threshold,
                fractal_level=0,
            )

    draw([1] * len(settings.iterations))  # It loads the kernels.
    return draw
