"""Measures one worker's speed, loss and time spent waiting for data, between two reports."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from fractal_model.data.loader import Batch
from fractal_model.training.job import Report
from fractal_model.training.trainer import StepReport, Trainer


class Meter:
    """Measures one worker's training since its last report, without the time for starting data
    loaders and saving checkpoints. `images`: number of training images."""

    def __init__(self, trainer: Trainer, images: int, workers: int) -> None:
        self._trainer = trainer
        self._images = images
        self._workers = workers
        self._reset()

    def start(self) -> None:
        """Start the clock. The time before this call, spent on set-up, does not count."""
        self._since = time.monotonic()

    def time_loading(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the loader's batches and measure the seconds spent waiting for them."""
        batches = iter(loader)
        with self.pause():
            batch = next(batches, None)
        while batch is not None:
            yield batch
            started = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - started

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Stop the clock during the `with` block."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._since += time.monotonic() - started

    def add_step(self, step: StepReport) -> None:
        self._steps.append(step)

    def add_note(self, text: str) -> None:
        """Add a sentence for people to the next report."""
        self._notes.append(text)

    def finish_report(self, skipped: int) -> Report:
        """Return a report on the time since the last report, and begin to measure for the next one.
        `skipped`: number of batches left out since the run began."""
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
