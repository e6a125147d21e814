"""Where a command takes its model from: a checkpoint, an exported folder or the registry."""

from __future__ import annotations

from pathlib import Path

from fractal_model.model.fractal import FractalModel
from fractal_model.model.pretrained import is_pretrained_folder
from fractal_model.tracking import registry, store
from fractal_model.training.checkpoint import CHECKPOINT_ONLY, load_checkpoint

REGISTRY_SCHEME = "models:/"


def load_model(source: str, outputs: Path) -> FractalModel:
    """The model in a folder, of a checkpoint or an exported one, or registered as
    `models:/NAME@ALIAS` or `models:/NAME/VERSION` in the store of `outputs`; on the CPU, in
    evaluation mode.

    FractalError: there is none, or it is damaged.
    """
    if not source.startswith(REGISTRY_SCHEME):
        folder = Path(source)
        # What is left of an interrupted checkpoint must not pass for an exported model.
        if is_pretrained_folder(folder, foreign=CHECKPOINT_ONLY):
            return FractalModel.from_pretrained(folder)
        return load_checkpoint(folder).build_model()
    store.connect(outputs)
    return load_checkpoint(registry.fetch_checkpoint(source)).build_model()
