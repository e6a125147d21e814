"""Where a command takes its model from: a checkpoint folder or the registry."""

from __future__ import annotations

from pathlib import Path

from fractal_model.model.fractal import FractalModel
from fractal_model.tracking import registry, store
from fractal_model.training.checkpoint import load_checkpoint

REGISTRY_SCHEME = "models:/"


def load_model(source: str, outputs: Path) -> FractalModel:
    """The model in a checkpoint folder, or registered as `models:/NAME@ALIAS` or
    `models:/NAME/VERSION` in the store of `outputs`; on the CPU, in evaluation mode.

    FractalError: there is none, or it is damaged.
    """
    if not source.startswith(REGISTRY_SCHEME):
        return load_checkpoint(Path(source)).build_model()
    store.connect(outputs)
    return load_checkpoint(registry.fetch_checkpoint(source)).build_model()
