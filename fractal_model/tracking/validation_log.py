"""Logs validation points of a training run to MLflow: metrics by step, and grids of samples.

Decided here: metrics go through the spool, which keeps them until MLflow has them. A grid that
MLflow does not take is sent again with the next point and at the end. The grid's file stays in the
run's storage, so that a continued training can send missing grids.
"""

import io
import logging
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Self

import mlflow
from PIL import Image

from fractal_model.common.errors import one_line
from fractal_model.metrics.names import NLL
from fractal_model.tracking.spool import MetricSpool

_IMAGE_NAME = re.compile(r"(?P<key>.+)\+step\+(?P<step>\d+)\+timestamp\+.*\.png")
"""Matches the file name that MLflow gives to a logged image. Groups: the image's key and step."""
_log = logging.getLogger("fractal.training")


class ValidationLog:
    """Logs each validation point of a run once. At the end of the `with` block, grids that are not
    in MLflow yet are sent again."""

    def __init__(self, run_id: str, spool: MetricSpool) -> None:
        self._client, self._run_id, self._spool = mlflow.MlflowClient(), run_id, spool
        self._pending: dict[tuple[str, int], bytes] = {}
        self._logged_steps: set[int] = set()
        self._logged_grids: set[tuple[str, int]] = set()
        try:
            history = self._client.get_metric_history(run_id, NLL)
            self._logged_steps = {metric.step for metric in history}
            names = [
                PurePosixPath(f.path).name for f in self._client.list_artifacts(run_id, "images")
            ]
            matches = [match for name in names if (match := _IMAGE_NAME.fullmatch(name))]
            self._logged_grids = {(match["key"], int(match["step"])) for match in matches}
        except Exception as error:  # A store raises other errors than MLflow's own, too.
            _log.warning("MLflow may show validation points twice (%s)", one_line(error))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if reason := self._send_grids():
            _log.warning(
                "sample grids are not in MLflow (%d, %s): they stay in the run's folder, and are "
                "sent when the same training is started again",
                len(self._pending),
                reason,
            )

    def add(self, step: int, metrics: Mapping[str, float], grids: Mapping[str, bytes]) -> None:
        """Log a validation point: its metrics, and its grids as PNG by file name. `step` is the
        number of images seen. What MLflow has already is not logged again."""
        if metrics and step not in self._logged_steps:
            self._spool.log(metrics, step=step)
            self._logged_steps.add(step)
        keys = {(PurePosixPath(name).stem, step): png for name, png in grids.items()}
        self._pending |= {key: png for key, png in keys.items() if key not in self._logged_grids}
        self._send_grids()

    def _send_grids(self) -> str | None:
        """Send the grids that are not in MLflow yet. If a grid fails, stop and return the reason;
        None means that all were sent."""
        for (key, step), png in list(self._pending.items()):
            try:
                image = Image.open(io.BytesIO(png))
                self._client.log_image(self._run_id, image, key=key, step=step, synchronous=True)
            except Exception as error:  # Training does not depend on it.
                return one_line(error)
            self._logged_grids.add((key, step))
            del self._pending[(key, step)]
        return None
