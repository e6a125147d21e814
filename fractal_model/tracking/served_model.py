"""The registered model as MLflow runs it: rows of (class, seed, guidance …) in, PNG bytes out.

MLflow stores this file as the model's code; the weights are the checkpoint beside it, so nothing
is pickled.
"""

from pathlib import Path

import mlflow
import pandas as pd
import torch

from fractal_model.images import png_bytes
from fractal_model.sampling.sampler import Sampler
from fractal_model.sampling.settings import SamplingConfig
from fractal_model.training.checkpoint import load_checkpoint


class ServedFractalModel(mlflow.pyfunc.PythonModel):
    """One image a row; rows of equal settings are sampled together."""

    def load_context(self, context):
        self._model = load_checkpoint(Path(context.artifacts["checkpoint"])).build_model()
        settings = Path(context.artifacts["sampling"]).read_text()
        self._settings = SamplingConfig.model_validate_json(settings)

    def predict(self, context, model_input: pd.DataFrame, params=None):
        rows = model_input.reset_index(drop=True)
        images: list[bytes | None] = [None] * len(rows)
        keys = ["guidance", "logit_scale"]
        for name in keys:
            default = getattr(self._settings, name)
            rows[name] = rows[name].fillna(default) if name in rows else default
        for values, same in rows.groupby(keys).groups.items():
            labels = torch.tensor(rows.loc[same, "class"].to_numpy(dtype="int64"))
            chosen = self._settings.model_dump() | dict(zip(keys, values, strict=True))
            sampler = Sampler(self._model, SamplingConfig(**chosen))
            sampled = sampler(labels, rows.loc[same, "seed"].astype(int).tolist())
            for place, image in zip(same, sampled, strict=True):
                images[place] = png_bytes(image)
        return images


mlflow.models.set_model(ServedFractalModel())
