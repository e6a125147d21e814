"""Logs validation points of a training run to MLflow: metrics by step, and grids of samples.

Decided here: nothing is sent before MLflow has said what it has of the run, and what is in the
spool's file counts as logged. So a continued run logs no point twice, even if MLflow was away when
it started. Metrics go through the spool, which keeps them until MLflow has them. A point that
cannot be sent is sent with the next one and at the end. Its files stay in the run's storage, so
that a continued training can send them.
"""

import io
import logging
import re
import time
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
AWAY_SECONDS = 60.0
"""Seconds until MLflow is asked again after it did not answer; asking can take minutes."""
_log = logging.getLogger("fractal.training")


class ValidationLog:
    """Logs each validation point of a run once. At the end of the `with` block, points that are not
    in MLflow yet are sent again."""

    def __init__(self, run_id: str, spool: MetricSpool) -> None:
        self._client, self._run_id, self._spool = mlflow.MlflowClient(), run_id, spool
        self._pending_metrics: dict[int, Mapping[str, float]] = {}
        self._pending_grids: dict[tuple[str, int], bytes] = {}
        self._next_try = 0.0
        self._is_known = False
        """True once MLflow has answered what it has of this run."""
        self._logged_steps = spool.steps_of(NLL)
        self._logged_grids: set[tuple[str, int]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if reason := self._send():
            positions = {*self._pending_metrics, *(step for _, step in self._pending_grids)}
            _log.warning(
                "validation points are not in MLflow (%d, %s): they stay in the run's folder, and "
                "are sent when the same training is started again",
                len(positions),
                reason,
            )

    def add(self, step: int, metrics: Mapping[str, float], grids: Mapping[str, bytes]) -> None:
        """Log a validation point: its metrics, and its grids as PNG by file name. `step` is the
        number of images seen. What MLflow has already is not logged again."""
        if metrics:
            self._pending_metrics[step] = metrics
        self._pending_grids |= {
            (PurePosixPath(name).stem, step): png for name, png in grids.items()
        }
        if time.monotonic() >= self._next_try and self._send() is not None:
            self._next_try = time.monotonic() + AWAY_SECONDS

    def _send(self) -> str | None:
        """Send what is not in MLflow yet. If MLflow does not answer or a grid fails, stop and
        return the reason; None means that all were sent."""
        try:
            if not self._is_known:
                self._ask()
            for step in sorted(self._pending_metrics):
                metrics = self._pending_metrics.pop(step)
                if step not in self._logged_steps:
                    self._spool.log(metrics, step=step)
                    self._logged_steps.add(step)
            for place, png in list(self._pending_grids.items()):
                if place not in self._logged_grids:
                    self._send_grid(*place, png)
                del self._pending_grids[place]
        except Exception as error:  # Training does not depend on it. Stores raise various errors.
            return one_line(error)
        return None

    def _ask(self) -> None:
        """Ask MLflow which points and grids of the run it has."""
        history = self._client.get_metric_history(self._run_id, NLL)
        files = self._client.list_artifacts(self._run_id, "images")
        names = [PurePosixPath(file.path).name for file in files]
        matches = [match for name in names if (match := _IMAGE_NAME.fullmatch(name))]
        self._logged_steps |= {metric.step for metric in history}
        self._logged_grids = {(match["key"], int(match["step"])) for match in matches}
        self._is_known = True

    def _send_grid(self, key: str, step: int, png: bytes) -> None:
        image = Image.open(io.BytesIO(png))
        self._client.log_image(self._run_id, image, key=key, step=step, synchronous=True)
        self._logged_grids.add((key, step))
