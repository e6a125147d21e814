"""Where a command takes its model from: a checkpoint, an exported folder or the registry."""

from __future__ import annotations

from pathlib import Path

from fractal_model.model.fractal import FractalModel
from fractal_model.model.pretrained import is_pretrained_folder
from fractal_model.tracking import registry, store
from fractal_model.training.checkpoint import CHECKPOINT_ONLY, load_checkpoint

REGISTRY_SCHEME = "models:/"
AVERAGED = "#ema"


def load_model(source: str, outputs: Path) -> FractalModel:
    """The model in a folder, of a checkpoint or an exported one, or registered as
    `models:/NAME@ALIAS` or `models:/NAME/VERSION` in the store of `outputs`; on the CPU, in
    evaluation mode. A checkpoint's or version's name with `#ema` at its end stands for the moving
    average of its weights.

    FractalError: there is none, or it is damaged.
    """
    source, averaged = source.removesuffix(AVERAGED), source.endswith(AVERAGED)
    if not source.startswith(REGISTRY_SCHEME):
        folder = Path(source)
        # What is left of an interrupted checkpoint must not pass for an exported model.
        if not averaged and is_pretrained_folder(folder, foreign=CHECKPOINT_ONLY):
            return FractalModel.from_pretrained(folder)
        return load_checkpoint(folder).build_model(averaged=averaged)
    store.connect(outputs)
    return load_checkpoint(registry.fetch_checkpoint(source)).build_model(averaged=averaged)
