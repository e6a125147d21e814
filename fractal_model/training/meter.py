"""What a worker measures between two reports."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from fractal_model.data.loader import Batch
from fractal_model.training.job import Report
from fractal_model.training.trainer import StepReport, Trainer


class Meter:
    """Means since the report before. Neither the start of a loader nor the saving of a checkpoint
    counts: the speed is that of training."""

    def __init__(self, trainer: Trainer, images: int, workers: int) -> None:
        self._trainer = trainer
        self._images = images
        self._workers = workers
        self._reset()

    def start(self) -> None:
        """Count time from here."""
        self._since = time.monotonic()

    def waiting(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the loader's batches and count the time that is spent waiting for them."""
        batches = iter(loader)
        with self.paused():
            batch = next(batches, None)
        while batch is not None:
            yield batch
            started = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock for the block."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._since += time.monotonic() - started

    def add(self, step: StepReport) -> None:
        self._steps.append(step)

    def note(self, text: str) -> None:
        """Add a sentence to the next report."""
        self._notes.append(text)

    def report(self, skipped: int) -> Report:
        seconds, steps = time.monotonic() - self._since, self._steps
        report = Report(
            position=self._trainer.position,
            step=self._trainer.steps,
            epoch=self._trainer.position / self._images,
            images_per_second=len(steps) * self._trainer.recipe.batch_size / seconds,
            data_wait_share=self._waited / seconds,
            workers=self._workers,
            accumulation=self._trainer.recipe.accumulation(self._workers),
            skipped_batches=skipped,
            loss=torch.stack([step.loss for step in steps]).mean().item() if steps else None,
            gradient_norm=steps[-1].gradient_norm.item() if steps else None,
            learning_rate=steps[-1].learning_rate if steps else None,
            note="; ".join(self._notes) or None,
        )
        self._reset()
        return report

    def _reset(self) -> None:
        self._since = time.monotonic()
        self._waited = 0.0
        self._steps: list[StepReport] = []
        self._notes: list[str] = []
