"""The registered model as MLflow runs it: rows of (class, seed, guidance …) in, PNG bytes out.

MLflow stores this file as the model's code; the weights are the checkpoint beside it, so nothing
is pickled. An image is the one that `fractal sample` draws with the same seed and settings.

Decided here: the whole request is checked before an image is drawn, and by this file alone. With
the columns in the model's signature MLflow would cast 1.5 to the seed 1 and drop a misspelt column.
"""

import difflib
import json
import numbers
from collections import defaultdict
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel
from pydantic import ValidationError

from fractal_model.checkpoints.checkpoint import load_checkpoint
from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.safe_text import shorten
from fractal_model.common.strict import LARGEST_SEED
from fractal_model.common.validation import describe
from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.serving import ServingConfig
from fractal_model.generation.classes import class_number
from fractal_model.generation.pictures import png_bytes
from fractal_model.generation.sample_images import sample_images

NEEDED = ("class", "seed")
SETTINGS = ("guidance", "logit_scale")
"""Columns that may be left out: then the model's own settings are taken."""
MOST_ROWS = 1000
"""Largest number of images of one request: drawing goes on after the client has left."""
_KNOWN = ", ".join((*NEEDED, *SETTINGS))
_LONGEST, _LONGEST_LINE = 60, 500


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
        logit_scale, a number in every row; at most MOST_ROWS. BadRequest names the row and what
        is wrong."""
        rows = _rows(model_input)
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
            raise BadRequest(f"row {place}: {shorten(one_line(error), _LONGEST_LINE)}") from error

    def _label(self, asked: object) -> int:
        number = _whole(asked)
        return class_number(str(asked if number is None else number), self._model.config)

    def _settings(self, row: dict) -> SamplingConfig:
        given = {name: row[name] for name in SETTINGS if name in row}
        for name, value in given.items():
            if value is None or value != value:  # pandas has NaN where a row has no such cell
                raise FractalError(f"{name} is missing: give it in every row, or in none")
            if not _is_number(value):
                raise FractalError(f"{name} {_shown(value)} given: a number is wanted")
        return SamplingConfig.model_validate(self._serving.sampling.model_dump() | given)


def _rows(table: Any) -> list[dict]:
    """The rows of a request. BadRequest: too many, or not the columns that there are."""
    if not isinstance(table, pd.DataFrame):  # of MLflow's other formats, such as `inputs`
        try:
            table = pd.DataFrame(table)
        except (ValueError, TypeError) as error:
            raise BadRequest(f"a table is wanted ({shorten(one_line(error), _LONGEST)})") from error
    if len(table) > MOST_ROWS:
        raise BadRequest(
            f"{len(table):,} rows given, at most {MOST_ROWS:,} are drawn at a time: send several "
            f"requests"
        )
    columns = [str(name) for name in table.columns]
    for name in columns:
        if name not in (*NEEDED, *SETTINGS):
            near = difflib.get_close_matches(name, (*NEEDED, *SETTINGS), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {_KNOWN}"
            raise BadRequest(f"column {_shown(name)} is unknown, {hint}")
        if columns.count(name) > 1:
            raise BadRequest(f"column {name!r} is there {columns.count(name)} times")
    if missing := [name for name in NEEDED if name not in columns]:
        raise BadRequest(f"column {' and '.join(missing)} is missing: known are {_KNOWN}")
    return table.to_dict("records")


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _whole(asked: Any) -> int | None:
    if not _is_number(asked):
        return None
    return int(asked) if asked == asked // 1 else None


def _shown(value: object) -> str:
    return shorten(repr(value), _LONGEST)


def _seed(asked: object) -> int:
    seed = _whole(asked)
    if seed is not None and 0 <= seed <= LARGEST_SEED:
        return seed
    raise FractalError(f"seed {_shown(asked)} given: a whole number is wanted, 0 … {LARGEST_SEED}")


mlflow.models.set_model(ServedFractalModel())
