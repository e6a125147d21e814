"""Shows the progress of a training: a bar in the terminal, artifacts and log lines in Prefect."""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from typing import Self
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import (
    create_link_artifact,
    create_progress_artifact,
    update_progress_artifact,
)

from fractal_model.common.console import progress_bar
from fractal_model.common.errors import one_line
from fractal_model.common.plurals import count_of
from fractal_model.common.progress import speed_text
from fractal_model.common.safe_text import safe_text
from fractal_model.tracking import store
from fractal_model.training.job import Report, TrainingJob

ARTIFACT_SECONDS, LOG_SECONDS = 5.0, 30.0
AWAY_SECONDS = 60.0
"""Seconds until the next attempt to update an artifact if Prefect's server does not answer. An
attempt can take minutes."""


NOTE_WIDTH = 32
"""Characters of a note such as `epoch 13.71, loss 1.057 (-0.001)`."""


class TrainingProgress:
    """Shows the progress of the training `job`, which sees `images` images over all epochs. The
    training calls `report` and `log_line`."""

    def __init__(self, job: TrainingJob, images: int) -> None:
        self._job = job
        self._images = images
        self._logger = get_run_logger()
        self._stack = ExitStack()
        self._next_artifact = self._next_log = 0.0
        self._artifact: UUID | None = None
        self._is_away = False

    def __enter__(self) -> Self:
        job, recipe = self._job, self._job.recipe
        # Without Prefect's log the console shows the progress, also in a file.
        lines = not self._logger.isEnabledFor(logging.INFO)
        self._bar = self._stack.enter_context(
            progress_bar(
                f"training {job.size}",
                self._images,
                images=True,
                lines=lines,
                note_width=NOTE_WIDTH,
            )
        )
        self._bar(0, "workers start")
        self._try_to_publish(self._publish_link)
        self._try_to_publish(self._publish_share, 0.0, f"training fractal-{job.size}")
        self._logger.info(
            "%s: %s, batch size %s; a worker computes %s at once, in %s per step",
            job.size,
            count_of(recipe.workers, "worker"),
            recipe.batch_size,
            count_of(
                min(recipe.images_per_worker, -(-recipe.batch_size // recipe.workers)), "image"
            ),
            count_of(recipe.accumulation(recipe.workers), "part"),
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def log_line(self, text: str) -> None:
        """Write a line of the job's log to Prefect's log."""
        self._logger.info(safe_text(text))

    def report(self, report: Report) -> None:
        """Update the bar; at longer intervals, also write a log line and update Prefect's
        artifact."""
        done, now = report.position, time.monotonic()
        note = _note(report, self._images - done)
        self._bar(done, _progress(report))
        if now >= self._next_log:
            self._next_log = now + LOG_SECONDS
            self._logger.info("%s: %s", self._job.size, note)
        if now >= self._next_artifact or done >= self._images:
            percent = min(100.0, 100 * done / self._images)
            is_shown = self._try_to_publish(self._publish_share, percent, note)
            pause = ARTIFACT_SECONDS if is_shown else AWAY_SECONDS
            self._next_artifact = time.monotonic() + pause

    def _try_to_publish(self, publish: Callable[..., None], *arguments: object) -> bool:
        """Call `publish`. If it fails, return False and log the error: training continues."""
        try:
            publish(*arguments)
        except Exception as error:
            if not self._is_away:
                text = "progress can't be shown (%s): training continues"
                self._logger.warning(text, one_line(error))
            self._is_away = True
            return False
        self._is_away = False
        return True

    def _publish_link(self) -> None:
        size, page = self._job.size, store.run_page(self._job.run_id)
        if page is not None:
            create_link_artifact(page, link_text=f"MLflow run of {size}", key=f"mlflow-run-{size}")

    def _publish_share(self, percent: float, note: str) -> None:
        if self._artifact is None:
            # Prefect annotates the coroutine that a call inside an event loop would return.
            self._artifact = create_progress_artifact(  # type: ignore[assignment]
                progress=percent, key=f"training-{self._job.size}", description=note
            )
        else:
            update_progress_artifact(self._artifact, progress=percent, description=note)


def _progress(report: Report, reference: str = "") -> str:
    """The epoch, the loss and its difference from the reference curve. Words that name the
    `reference` follow it."""
    excess = report.loss_over_reference
    loss = "" if report.loss is None else f", loss {report.loss:.3f}"
    compared = "" if excess is None else f" ({excess:+.3f}{reference})"
    return f"epoch {report.epoch:.2f}{loss}{compared}"


def _note(report: Report, images_left: int) -> str:
    speed, progress = report.images_per_second, _progress(report, " to the reference curve")
    efficiency = "" if report.mfu is None else f" at {report.mfu:.0%} MFU"
    time_left = timedelta(seconds=round(max(images_left, 0) / speed)) if speed else "unknown time"
    pace = speed_text(speed) or "no speed yet"
    return f"{progress}, {pace}{efficiency}, {time_left} left"
