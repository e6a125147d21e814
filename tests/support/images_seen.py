"""Which images every rank of a training has seen, step by step."""

from __future__ import annotations

from pathlib import Path

from fractal_model.data.order import stream_indices
from fractal_model.training.ray_train.worker import train_worker
from fractal_model.training.trainer import Trainer


def recording_worker(folder: Path):
    """The worker; each rank appends the position and its images of every step."""

    def worker(config):
        original = Trainer.step

        def step(trainer, batch):
            position = trainer.position
            report = original(trainer, batch)
            seen = " ".join(map(str, batch.indices.tolist()))
            with (folder / f"{position:06d}").open("a") as file:
                file.write(f"{trainer._world_size} {trainer._rank} {seen}\n")
            return report

        Trainer.step = step
        train_worker(config)

    return worker


def _last_word(file: Path) -> tuple[int, list[int]]:
    """How many workers made the step, the last time it was made, and its images in order."""
    lines = [[int(word) for word in line.split()] for line in file.read_text().splitlines()]
    workers = lines[-1][0]
    ranks = {rank: images for count, rank, *images in lines if count == workers}
    assert sorted(ranks) == list(range(workers))
    return workers, [image for rank in sorted(ranks) for image in ranks[rank]]


def steps_seen(seen: Path, *, epochs: int, images: int, batch: int) -> list[int]:
    """How many workers made each step; asserts that every image of every step is where the order
    of the data has it."""
    steps = [_last_word(file) for file in sorted(seen.iterdir())]
    assert [found for _, found in steps] == [
        stream_indices(seed=0, start=start, count=batch, size=images).tolist()
        for start in range(0, epochs * images, batch)
    ]
    return [workers for workers, _ in steps]
