"""Batches of a prepared split for training.

Decided here: which images a batch holds is settled before the work is given to any worker, so
the stream does not depend on the number of ranks or of loader processes. A rank gets its
contiguous slice of each global batch. Training resumes by giving the position in images.
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
    images: torch.Tensor
    """uint8 (B, 3, H, W)"""
    labels: torch.Tensor
    """int64 (B,)"""
    indices: torch.Tensor
    """int64 (B,): positions in the split."""


_Pick = tuple[int, bool]
"""One image that a loader process is asked for: its index, and whether it is mirrored."""


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
    """This rank's part of the training stream from `position` to `end_position`, in batches.

    `batch_size` is the global batch, shared out evenly: where it does not divide, some ranks have
    one image more. Positions count images over all ranks. Every batch is full: the last one may
    go past `end_position`, and there is none when `position` has reached it. With `flip`, an image
    is mirrored or not by (seed, epoch, index). Torch's global random state is left alone.

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
        raise FractalError(f"seed is {seed} and position {position}, expected 0 or more")
    sampler = _StreamBatches(
        size=len(split),
        seed=seed,
        starts=range(position, end_position, batch_size),
        flip=flip,
        part=range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size),
    )
    return DataLoader(
        _Flipped(split),  # type: ignore[arg-type]  # torch's annotation leaves out collate_fn
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=_collate,
        # Its own generator: without one every new iterator takes from the global random state.
        generator=torch.Generator().manual_seed(0),
    )


def read_batch(split: PreparedSplit, indices: Sequence[int]) -> Batch:
    """These images of a split, unmirrored."""
    return _collate(split.__getitems__(indices))


@dataclass(frozen=True)
class _StreamBatches:
    """The batch sampler: each batch is a stretch of the stream."""

    size: int
    """Images of the split."""
    seed: int
    starts: range
    """Positions in the stream at which the global batches start."""
    flip: bool
    part: range
    """Places in the global batch that are this rank's."""

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[list[_Pick]]:
        for start in self.starts:
            stretch = {"start": start + self.part.start, "count": len(self.part)}
            indices = stream_indices(seed=self.seed, size=self.size, **stretch).tolist()
            flips = stream_flips(seed=self.seed, size=self.size, **stretch).tolist()
            yield [(i, self.flip and f) for i, f in zip(indices, flips, strict=True)]


class _Flipped(Dataset[Example]):
    """The split, mirrored where the pick says so."""

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
