"""How far a training is, for whoever looks: a bar in the terminal, artifacts and log in Prefect."""

from __future__ import annotations

import time
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

from fractal_model.console import progress_bar
from fractal_model.tracking import store
from fractal_model.training.job import Report, TrainingJob

ARTIFACT_SECONDS, LOG_SECONDS = 5.0, 30.0


class TrainingProgress:
    """Follows one run; `report` and `line` are called as it goes on."""

    def __init__(self, job: TrainingJob, images: int) -> None:
        self._job = job
        self._images = images
        self._logger = get_run_logger()
        self._stack = ExitStack()
        self._next_artifact = self._next_log = 0.0
        self._artifact: UUID | None = None

    def __enter__(self) -> Self:
        job, recipe = self._job, self._job.recipe
        self._bar = self._stack.enter_context(
            progress_bar(f"training fractal-{job.size}, images", self._images)
        )
        link = store.run_page(job.run_id)
        if link is not None:
            create_link_artifact(
                link, link_text=f"MLflow run of {job.size}", key=f"mlflow-run-{job.size}"
            )
        self._artifact = create_progress_artifact(
            progress=0.0, key=f"training-{job.size}", description=f"training fractal-{job.size}"
        )
        self._logger.info(
            "%s: %s workers, batches of %s, each worker %s at a time, %s times a step",
            job.size,
            recipe.workers,
            recipe.batch_size,
            min(recipe.images_per_worker, -(-recipe.batch_size // recipe.workers)),
            recipe.accumulation(recipe.workers),
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def line(self, text: str) -> None:
        """A line of the job's log."""
        self._logger.info(text)

    def report(self, report: Report) -> None:
        done, now = int(report["position"]), time.monotonic()
        note = _note(report, self._images - done)
        self._bar(done, note)
        if now >= self._next_log:
            self._next_log = now + LOG_SECONDS
            self._logger.info("%s: %s", self._job.size, note)
        if now >= self._next_artifact or done >= self._images:
            self._next_artifact = now + ARTIFACT_SECONDS
            share = min(100.0, 100 * done / self._images)
            update_progress_artifact(self._artifact, progress=share, description=note)


def _note(report: Report, left: int) -> str:
    speed = report["images_per_second"]
    loss = f", loss {report['loss']:.3f}" if "loss" in report else ""
    remaining = timedelta(seconds=round(max(left, 0) / speed)) if speed else "unknown time"
    return f"epoch {report['epoch']:.2f}, {speed:.0f} images/s{loss}, {remaining} left"
