"""Load batches of a prepared split for training.

Decided here: the images of a batch are decided before any process loads them, so the stream does
not depend on the number of ranks or loader processes. A rank gets a contiguous slice of each global
batch. Training resumes from a position in the stream, counted in images of all ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from fractal_model.common.errors import FractalError
from fractal_model.data.order import stream_flips, stream_indices
from fractal_model.data.prepared import Example, PreparedSplit


class Batch(NamedTuple):
    """One rank's part of a global batch: B images with their labels."""

    images: torch.Tensor
    """Pixels: uint8 (B, 3, H, W)."""
    labels: torch.Tensor
    """Class number of each image: int64 (B,)."""
    indices: torch.Tensor
    """Position of each image in the split: int64 (B,)."""


_Pick = tuple[int, bool]
"""A request for one image: its index in the split, and True if the image is to be mirrored."""


def train_loader(
    split: PreparedSplit,
    *,
    seed: int,
    position: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    flip: bool = False,
    end_position: int,
) -> DataLoader[Batch]:
    """Return a loader of this rank's part of the training stream from `position` to `end_position`.

    `batch_size` is the global batch size over all ranks. If it cannot be divided evenly, some ranks
    get one image more. Positions count images over all ranks. Every batch is full, so the last one
    may go past `end_position`. If `position` is not below `end_position`, there is no batch. With
    `flip`, about half of the images are mirrored; `seed`, the epoch and the index of an image
    decide it. `num_workers` is the number of loader processes; with 0 this process loads the
    images. Torch's global random state does not change.

    Raises FractalError when there are more ranks than images in a batch, and for a rank,
    position, seed or batch size out of range.
    """
    if world_size < 1 or not 0 <= rank < world_size:
        raise FractalError(
            f"rank is {rank} of world_size {world_size}, expected 0 to world_size - 1"
        )
    if batch_size < world_size:
        raise FractalError(
            f"batch_size {batch_size} leaves some of the {world_size} workers without an image: "
            f"choose {world_size} or more"
        )
    if seed < 0 or position < 0:
        raise FractalError(f"seed is {seed} and position {position}, expected both to be 0 or more")
    sampler = _StreamBatches(
        size=len(split),
        seed=seed,
        starts=range(position, end_position, batch_size),
        flip=flip,
        part=range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size),
    )
    return DataLoader(
        _FlippedSplit(split),  # type: ignore[arg-type]  # torch's annotation leaves out collate_fn
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=_collate,
        # Without a generator every new iterator would draw from the global random state.
        generator=torch.Generator().manual_seed(0),
    )


def read_batch(split: PreparedSplit, indices: Sequence[int]) -> Batch:
    """Return the images at the positions `indices` of a split as a batch. No image is mirrored."""
    return _collate(split.__getitems__(indices))


@dataclass(frozen=True)
class _StreamBatches:
    """Batch sampler that yields this rank's part of each global batch of the stream."""

    size: int
    """Number of images in the split."""
    seed: int
    starts: range
    """Positions in the stream at which global batches start."""
    flip: bool
    part: range
    """Places in each global batch, counted from 0, that this rank loads."""

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[list[_Pick]]:
        for start in self.starts:
            interval = {"start": start + self.part.start, "count": len(self.part)}
            indices = stream_indices(seed=self.seed, size=self.size, **interval).tolist()
            flips = stream_flips(seed=self.seed, size=self.size, **interval).tolist()
            yield [(i, self.flip and f) for i, f in zip(indices, flips, strict=True)]


class _FlippedSplit(Dataset[Example]):
    """Wrapper of a split that reads the image of each `_Pick` and mirrors it on request."""

    def __init__(self, split: PreparedSplit) -> None:
        self._split = split

    def __getitems__(self, picks: Sequence[_Pick]) -> list[Example]:
        examples = self._split.__getitems__([index for index, _ in picks])
        return [
            example._replace(image=example.image.flip(-1)) if flip else example
            for example, (_, flip) in zip(examples, picks, strict=True)
        ]


def _collate(examples: list[Example]) -> Batch:
    return Batch(*default_collate(examples))
