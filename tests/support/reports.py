"""Reports of a training for tests of the code that reads them."""

from __future__ import annotations

from fractal_model.training.job import Report

ORDINARY = Report(
    position=80,
    step=10,
    epoch=1.0,
    images_per_second=100.0,
    data_wait_share=0.0,
    workers=4,
    accumulation=1,
    skipped_batches=0,
    loss=3.0,
    gradient_norm=1.0,
    learning_rate=0.1,
)


def make_report(**changes: object) -> Report:
    """An ordinary report with `changes`."""
    return ORDINARY.model_copy(update=changes)
