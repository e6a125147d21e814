"""The registered model as MLflow runs it: rows of (class, seed, guidance …) in, PNG bytes out.

MLflow stores this file as the model's code; the weights are the checkpoint beside it, so nothing
is pickled. An image is the one that `fractal sample` draws with the same seed and settings.
"""

import json
import numbers
from collections import defaultdict
from pathlib import Path
from typing import SupportsInt

import mlflow
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel
from pydantic import ValidationError

from fractal_model.checkpoints.checkpoint import load_checkpoint
from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.validation import describe
from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.serving import ServingConfig
from fractal_model.generation.classes import class_number
from fractal_model.generation.pictures import png_bytes
from fractal_model.generation.sample_images import sample_images
from fractal_model.model.randomness import LARGEST_SEED

SETTINGS = ("guidance", "logit_scale")
"""Columns that may be left out: then the model's own settings are taken."""


class BadRequest(MlflowException):
    """What is wrong with a request, on one line. MLflow's server would put all rows before it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.error_code, self._line = "BAD_REQUEST", message

    def serialize_as_json(self) -> str:
        return json.dumps({"error_code": self.error_code, "message": self._line})


class ServedFractalModel(PythonModel):
    """One image a row; rows of equal settings are sampled together."""

    def load_context(self, context):
        serving = Path(context.artifacts["serving"]).read_text()
        self._serving = ServingConfig.model_validate_json(serving)
        checkpoint = load_checkpoint(Path(context.artifacts["checkpoint"]))
        self._model = checkpoint.build_model(averaged=self._serving.weights == "ema")

    def predict(self, context, model_input: pd.DataFrame, params=None):
        """Columns class (number or name, `none` for no class), seed, and where wanted guidance and
        logit_scale, a number in every row. BadRequest names the row and what is wrong."""
        rows = model_input.to_dict("records")
        requests = [self._request(place, row) for place, row in enumerate(rows)]
        same_settings = defaultdict(list)
        for place, (_, _, settings) in enumerate(requests):
            same_settings[settings].append(place)
        images: list[bytes | None] = [None] * len(rows)
        for settings, places in same_settings.items():
            labels = torch.tensor([requests[place][0] for place in places])
            seeds = [requests[place][1] for place in places]
            for part, sampled in sample_images(self._model, settings, labels, seeds):
                for at, image in zip(part, sampled, strict=True):
                    images[places[at]] = png_bytes(image)
        return images

    def _request(self, place: int, row: dict) -> tuple[int, int, SamplingConfig]:
        """Class number, seed and settings of a row."""
        try:
            return self._label(row["class"]), _seed(row["seed"]), self._settings(row)
        except ValidationError as error:
            raise BadRequest(f"row {place}: {describe(error, SamplingConfig)}") from error
        except FractalError as error:
            raise BadRequest(f"row {place}: {one_line(error)}") from error

    def _label(self, asked: object) -> int:
        number = _whole(asked)
        return class_number(str(asked if number is None else number), self._model.config)

    def _settings(self, row: dict) -> SamplingConfig:
        given = {name: row[name] for name in SETTINGS if name in row}
        return SamplingConfig.model_validate(self._serving.sampling.model_dump() | given)


def _whole(asked: object) -> int | None:
    if not isinstance(asked, numbers.Real) or not isinstance(asked, SupportsInt):
        return None
    return int(asked) if float(asked).is_integer() else None


def _seed(asked: object) -> int:
    seed = _whole(asked)
    if seed is not None and 0 <= seed <= LARGEST_SEED:
        return seed
    raise FractalError(f"seed {asked} given: a whole number is wanted, 0 … {LARGEST_SEED}")


mlflow.models.set_model(ServedFractalModel())
