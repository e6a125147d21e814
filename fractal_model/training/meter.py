"""Measures one worker's speed, efficiency, loss and waiting for data, between two reports."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from fractal_model.data.loader import Batch
from fractal_model.training.job import Report
from fractal_model.training.trainer import StepReport, Trainer


class Meter:
    """Measures one worker's training since its last report, without the time for starting data
    loaders and saving checkpoints.

    `images`: number of training images. `gflop_per_image`: operations of forward and backward pass
    in 10⁹; without them reports have no `tflops`. `peak_gflops`: the device's peak in 10⁹
    operations per second; without it they have no `mfu`."""

    def __init__(
        self,
        trainer: Trainer,
        images: int,
        workers: int,
        *,
        gflop_per_image: float | None = None,
        peak_gflops: float | None = None,
    ) -> None:
        self._trainer = trainer
        self._images = images
        self._workers = workers
        self._gflop_per_image = gflop_per_image
        self._peak_gflops = peak_gflops
        self._paused_at: float | None = None
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
        self._paused_at = time.monotonic()
        try:
            yield
        finally:
            self._since += time.monotonic() - self._paused_at
            self._paused_at = None

    def add_step(self, step: StepReport) -> None:
        self._steps.append(step)

    def add_note(self, text: str) -> None:
        """Add a sentence for people to the next report."""
        self._notes.append(text)

    def finish_report(self, skipped: int) -> Report:
        """Return a report on the time since the last report, and begin to measure for the next one.
        `skipped`: number of batches left out since the run began."""
        seconds, steps = self._now() - self._since, self._steps
        speed = len(steps) * self._trainer.recipe.batch_size / seconds
        report = Report(
            position=self._trainer.position,
            step=self._trainer.steps,
            epoch=self._trainer.position / self._images,
            images_per_second=speed,
            data_wait_share=self._waited / seconds,
            workers=self._workers,
            accumulation=self._trainer.recipe.accumulation(self._workers),
            skipped_batches=skipped,
            loss=torch.stack([step.loss for step in steps]).mean().item() if steps else None,
            gradient_norm=steps[-1].gradient_norm.item() if steps else None,
            learning_rate=steps[-1].learning_rate if steps else None,
            note="; ".join(self._notes) or None,
            gpu_memory_gb=self._gpu_memory_gb(),
            eta_hours=self._images_left / speed / 3600 if speed else None,
            **self._efficiency(speed),
        )
        self._reset()
        return report

    @property
    def _images_left(self) -> int:
        return max(0, self._trainer.end_position - self._trainer.position)

    def _efficiency(self, images_per_second: float) -> dict[str, float]:
        """Return `tflops` and `mfu`: both if operations and peak are known, none without
        operations."""
        if self._gflop_per_image is None:
            return {}
        gflops = images_per_second / self._workers * self._gflop_per_image
        share = {} if self._peak_gflops is None else {"mfu": gflops / self._peak_gflops}
        return {"tflops": gflops / 1000, **share}

    def _gpu_memory_gb(self) -> float | None:
        device = self._trainer.device
        return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None

    def _now(self) -> float:
        """The clock's time, which stands still during a pause."""
        return time.monotonic() if self._paused_at is None else self._paused_at

    def _reset(self) -> None:
        self._since = self._now()
        self._waited = 0.0
        self._steps: list[StepReport] = []
        self._notes: list[str] = []
        if self._trainer.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._trainer.device)
