"""Code that tests share: tiny models, images, settings, projects and servers."""

from __future__ import annotations

from pathlib import Path

import torch

from fractal_model.config.architecture import Architecture
from fractal_model.config.model import ModelConfig
from fractal_model.model.fractal import FractalModel, initialise

REPOSITORY = Path(__file__).parents[2]
KINDS = {
    "ar": {"patch_sizes": (4, 2, 1), "generators": ("ar", "ar"), "conditions": 1},
    "mar": {"patch_sizes": (4, 2, 1), "generators": ("mar", "mar"), "conditions": 5},
    "guided": {
        "patch_sizes": (8, 4, 2, 1),
        "generators": ("mar", "mar", "mar"),
        "conditions": 5,
        "guiding_pixel": True,
    },
    "mar above ar": {"patch_sizes": (4, 2, 1), "generators": ("mar", "ar"), "conditions": 5},
    "ar above mar": {"patch_sizes": (4, 2, 1), "generators": ("ar", "mar"), "conditions": 1},
}


def tiny_config(kind: str, **changes: object) -> ModelConfig:
    """A configuration with narrow levels and four classes; `changes` replace entries of its row."""
    row = {**KINDS[kind], "num_classes": 4, "dropout": 0.0, **changes}
    levels = len(row["patch_sizes"])
    row.setdefault("widths", (16,) * (levels - 1) + (8,))
    row.setdefault("blocks", (1,) * levels)
    row.setdefault("heads", (2,) * levels)
    return Architecture(**row).to_model()


def tiny_model(kind: str, *, sharpen: float = 8.0, **changes: object) -> FractalModel:
    """A model with random weights; `sharpen` makes its logits as uneven as after training."""
    model = FractalModel(tiny_config(kind, **changes))
    generator = torch.Generator().manual_seed(1)
    initialise(model, generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "codebooks" in name or name.endswith(("embedding", "embedding.weight")):
                parameter *= sharpen
            elif name.endswith(("query_norm.weight", "key_norm.weight")):
                parameter.uniform_(0.5, 2.0, generator=generator)
    return model.eval()


def deeper_model(kind: str, **changes: object) -> FractalModel:
    """A tiny model with three blocks in each level and two in the pixel network."""
    levels = len(KINDS[kind]["generators"])
    return tiny_model(kind, blocks=(3,) * levels + (2,), **changes)


def images_for(model: FractalModel, count: int) -> torch.Tensor:
    """Random images of the model's size: (count, 3, S, S) uint8."""
    return random_images(count, model.config.image_size)


def random_images(count: int, size: int = 8, seed: int = 0) -> torch.Tensor:
    """Random images: (count, 3, size, size) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
