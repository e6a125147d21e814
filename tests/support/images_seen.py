"""Record the images that each rank of a training sees in each step."""

from __future__ import annotations

from pathlib import Path

from fractal_model.data.order import stream_indices
from fractal_model.training.ray_train.worker import train_worker
from fractal_model.training.trainer import Trainer


def recording_worker(folder: Path):
    """A training worker whose ranks write the images of each step to a file of `folder`."""

    def worker(config):
        original = Trainer.start_step

        def start_step(trainer, batch):
            position = trainer.position
            report = original(trainer, batch)
            numbers = " ".join(map(str, batch.indices.tolist()))
            with (folder / f"{position:06d}").open("a") as file:
                file.write(f"{trainer._world_size} {trainer._rank} {numbers}\n")
            return report

        Trainer.start_step = start_step
        train_worker(config)

    return worker


def _read_step(file: Path) -> tuple[int, list[int]]:
    """The number of workers and the images, in order, of a step's last execution."""
    lines = [[int(word) for word in line.split()] for line in file.read_text().splitlines()]
    workers = lines[-1][0]
    ranks = {rank: images for count, rank, *images in lines if count == workers}
    assert sorted(ranks) == list(range(workers))
    return workers, [image for rank in sorted(ranks) for image in ranks[rank]]


def steps_seen(seen: Path, *, epochs: int, images: int, batch: int) -> list[int]:
    """Require that each step saw its images in the data's order; return its number of workers."""
    steps = [_read_step(file) for file in sorted(seen.iterdir())]
    assert [numbers for _, numbers in steps] == [
        stream_indices(seed=0, start=start, count=batch, size=images).tolist()
        for start in range(0, epochs * images, batch)
    ]
    return [workers for workers, _ in steps]
