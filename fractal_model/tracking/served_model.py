"""The registered model as MLflow serves it: rows of (class, seed, guidance …) in, PNG bytes out.

MLflow stores this file as the model's code, and a checkpoint as its weights. Nothing is pickled.
`fractal sample` draws the same image with the same class, seed and settings.

Decided here: this file checks the whole request before any image is drawn. MLflow does not check
it: with columns in the signature, MLflow would cast the seed 1.5 to 1 and drop a misspelt column.
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
from mlflow.protos.databricks_pb2 import BAD_REQUEST, REQUEST_LIMIT_EXCEEDED
from mlflow.pyfunc import PythonModel
from pydantic import ValidationError

from fractal_model.checkpoints.checkpoint import load_checkpoint
from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.safe_text import shorten
from fractal_model.common.strict import LARGEST_SEED
from fractal_model.common.validation import describe
from fractal_model.config.model import UNCONDITIONAL
from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.serving import ServingConfig
from fractal_model.generation.classes import class_number
from fractal_model.generation.pictures import png_bytes
from fractal_model.generation.shared_sampling import BusyError, SharedSampling, Wanted

NEEDED = ("class", "seed")
SETTINGS = ("guidance", "logit_scale")
"""Optional columns; without them the model's own settings are used."""
MOST_ROWS = 1000
"""Largest number of rows (images) of a request. It is limited because the server draws all of them
even if the client disconnects."""
MOST_WAITING = 2 * MOST_ROWS
"""Largest number of images of other requests that a request may wait for."""
_COLUMNS = ", ".join((*NEEDED, *SETTINGS))
_LONGEST, _LONGEST_LINE = 60, 500


class BadRequest(MlflowException):
    """An error in a client's request. The server answers with the error's message alone; by
    default, MLflow would put all rows of the request before the message."""

    def __init__(self, message: str, code: int = BAD_REQUEST) -> None:
        super().__init__(message, code)
        self._line = message

    def serialize_as_json(self) -> str:
        return json.dumps({"error_code": self.error_code, "message": self._line})


class ServedFractalModel(PythonModel):
    """Draws one image per row of a request. Rows with equal settings are sampled together, also
    those of requests that arrive at the same time."""

    def load_context(self, context):
        serving = Path(context.artifacts["serving"]).read_text()
        self._serving = ServingConfig.model_validate_json(serving)
        checkpoint = load_checkpoint(Path(context.artifacts["checkpoint"]))
        self._model = checkpoint.build_model(self._serving.weights)
        self._sampling = SharedSampling(self._model, most_waiting=MOST_WAITING)

    def predict(self, context, model_input: pd.DataFrame, params=None):
        """Draw an image for each of at most MOST_ROWS rows; return PNG bytes in the rows' order.
        Columns: class (number or name, `none` for no class), seed, and optionally guidance and
        logit_scale, with a number in every row. BadRequest: a row or column is wrong, or too many
        images of other requests wait already."""
        if params is not None:  # MLflow passes {}, since the signature has none.
            raise BadRequest(f"params are not used: send {' or '.join(SETTINGS)} as a column")
        rows = _read_rows(model_input)
        requests = [self._read_request(place, row) for place, row in enumerate(rows)]
        same_settings = defaultdict(list)
        for place, (_, _, settings) in enumerate(requests):
            same_settings[settings].append(place)
        wanted = [
            Wanted(
                settings,
                torch.tensor([requests[place][0] for place in places]),
                [requests[place][1] for place in places],
            )
            for settings, places in same_settings.items()
        ]
        try:
            drawn = self._sampling.draw(wanted)
        except BusyError as error:
            raise BadRequest(str(error), REQUEST_LIMIT_EXCEEDED) from error
        images: list[bytes | None] = [None] * len(rows)
        for places, group in zip(same_settings.values(), drawn, strict=True):
            for place, image in zip(places, group, strict=True):
                images[place] = png_bytes(image)
        return images

    def _read_request(self, place: int, row: dict) -> tuple[int, int, SamplingConfig]:
        """Return the class number, seed and settings of a row."""
        try:
            return self._read_class(row["class"]), _read_seed(row["seed"]), self._read_settings(row)
        except ValidationError as error:
            raise BadRequest(f"row {place}: {describe(error, SamplingConfig)}") from error
        except FractalError as error:
            raise BadRequest(f"row {place}: {shorten(one_line(error), _LONGEST_LINE)}") from error

    def _read_class(self, value: object) -> int:
        number = _whole_number(value)
        if number is not None and abs(number) < 2**63:
            value = str(number)
        if not isinstance(value, str):
            expected = f"a name, a number or {UNCONDITIONAL!r}"
            raise FractalError(f"class is {_shorten_repr(value)}: expected {expected}")
        return class_number(value, self._model.config)

    def _read_settings(self, row: dict) -> SamplingConfig:
        settings = {name: row[name] for name in SETTINGS if name in row}
        for name, value in settings.items():
            # pandas fills a missing cell with NaN.
            if value is None or (_is_number(value) and value != value):
                raise FractalError(f"{name} is missing: give it in every row, or in none")
            if not _is_number(value):
                raise FractalError(f"{name} is {_shorten_repr(value)}: expected a number")
        return SamplingConfig.model_validate(self._serving.sampling.model_dump() | settings)


def _read_rows(table: Any) -> list[dict]:
    if not isinstance(table, pd.DataFrame):  # For example, the request's key was `inputs`.
        try:
            table = pd.DataFrame(table)
        except (ValueError, TypeError) as error:
            reason = shorten(one_line(error), _LONGEST)
            raise BadRequest(
                f"the request is no table ({reason}): expected the columns {_COLUMNS}"
            ) from error
    if len(table) > MOST_ROWS:
        raise BadRequest(
            f"the request has {len(table):,} rows, at most {MOST_ROWS:,} are allowed: send several "
            f"requests"
        )
    if not isinstance(table.index, pd.RangeIndex):  # The first value of a CSV row without a name.
        raise BadRequest(
            "the rows have an index, and are perhaps one value longer than the header: send the "
            f"columns {_COLUMNS} without an index"
        )
    columns = [str(name) for name in table.columns]
    for name in columns:
        if name not in (*NEEDED, *SETTINGS):
            near = difflib.get_close_matches(name, (*NEEDED, *SETTINGS), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {_COLUMNS}"
            raise BadRequest(f"column {_shorten_repr(name)} is unknown, {hint}")
        if columns.count(name) > 1:
            raise BadRequest(f"column {name!r} appears {columns.count(name)} times: send it once")
    if missing := [name for name in NEEDED if name not in columns]:
        raise BadRequest(f"column {' and '.join(missing)} is missing: expected in every row")
    return table.to_dict("records")


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _whole_number(value: Any) -> int | None:
    return int(value) if _is_number(value) and value == value // 1 else None


def _shorten_repr(value: object) -> str:
    try:
        return shorten(repr(value), _LONGEST)
    except (ValueError, RecursionError):  # Python refuses to print long integers and deep lists.
        return f"a huge {type(value).__name__}"


def _read_seed(value: object) -> int:
    seed = _whole_number(value)
    if seed is not None and 0 <= seed <= LARGEST_SEED:
        return seed
    expected = f"a whole number from 0 to {LARGEST_SEED}"
    raise FractalError(f"seed is {_shorten_repr(value)}: expected {expected}")


mlflow.models.set_model(ServedFractalModel())
