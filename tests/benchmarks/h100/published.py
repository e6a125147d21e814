"""The published code (github.com/LTH14/fractalgen) on the same GPU, as its own scripts use it.

Decided here: nothing of it is copied. A folder with a checkout is put on the import path, and its
models are built with the settings of its README. Training has its automatic float16 with a gradient
scaler, AdamW, clipping and activation checkpointing, sampling the same automatic float16.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from fractal_model.common.errors import FractalError

_MODELS = {
    "ar-64": ("fractalar_in64", 64, 1, False),
    "mar-64": ("fractalmar_in64", 64, 5, False),
    "mar-b": ("fractalmar_base_in256", 256, 5, True),
    "mar-l": ("fractalmar_large_in256", 256, 5, True),
    "mar-h": ("fractalmar_huge_in256", 256, 5, True),
}
"""Function, side of the images, conditions and guiding pixel of each size."""
_SAMPLING = {
    "ar-64": (11.0, 1.03),
    "mar-64": (6.5, 1.02),
    "mar-l": (21.0, 1.1),
    "mar-h": (19.0, 1.1),
}
"""Published guidance and temperature."""


def published_model(folder: Path, size: str) -> Any:
    """The published model of a size on the GPU. FractalError: the folder has no published code."""
    if not (folder / "models" / "fractalgen.py").is_file():
        raise FractalError(f"{folder} has no models/fractalgen.py: clone the published code there")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    function, _, conditions, guiding_pixel = _MODELS[size]
    build = getattr(import_module("models.fractalgen"), function)
    model = build(
        label_drop_prob=0.1,
        class_num=1000,
        attn_dropout=0.1,
        proj_dropout=0.1,
        guiding_pixel=guiding_pixel,
        num_conds=conditions,
        r_weight=5.0,
        grad_checkpointing=True,
    )
    return model.cuda()


def published_training(folder: Path, size: str, batch: int) -> Callable[[], object]:
    """A function that does one training step of the published code on noise."""
    model, side = published_model(folder, size).train(), _MODELS[size][1]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95))
    scaler = torch.amp.GradScaler("cuda")
    images = torch.randn(batch, 3, side, side, device="cuda").clamp(-2, 2)
    labels = torch.arange(batch, device="cuda")

    def step() -> None:
        with torch.autocast("cuda", torch.float16):
            loss = model(images, labels)
        loss.item()  # It reads the loss in each step.
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def published_sampling(folder: Path, size: str, batch: int) -> Callable[[], object]:
    """A function that samples a batch as the published code does, with guidance."""
    model = published_model(folder, size).eval()
    guidance, temperature = _SAMPLING[size]
    iterations = [64, 16, 16] if _MODELS[size][1] == 256 else [64, 16]
    labels = torch.arange(batch, device="cuda")

    def draw() -> None:
        with torch.no_grad(), torch.autocast("cuda", torch.float16):
            embedded = model.class_emb(labels)
            null = model.fake_latent.repeat(batch, 1)
            conditions = [torch.cat([embedded, null])] * 5
            model.sample(
                cond_list=conditions,
                num_iter_list=iterations,
                cfg=guidance,
                cfg_schedule="linear",
                temperature=temperature,
                filter_threshold=1e-4,
                fractal_level=0,
            )

    return draw
