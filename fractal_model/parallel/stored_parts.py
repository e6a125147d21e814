"""Store the results of work on many images, so that stopped work continues where it was.

Decided here: each part is one safetensors file, written as soon as its rows are computed. The file
has the number of the part's first image as its name. It appears only when it is complete, so an
interrupted part leaves no file. `StoredParts` wraps another `MapParts` and is used like it, so code
that takes a `MapParts` need not know about the files.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fractal_model.common.files import atomic_file
from fractal_model.parallel.parts import MapParts, StartWork, Work

ROWS = "rows"


class StoredParts:
    """A `MapParts` that computes with `map_parts` and stores the rows in `folder`. The folder's
    name must identify the work, because stored rows are not computed again."""

    def __init__(self, folder: Path, map_parts: MapParts) -> None:
        self._folder = folder
        self._map_parts = map_parts

    def __call__(
        self, start: StartWork, total: int, *, largest: int
    ) -> Iterator[tuple[range, Tensor]]:
        """Yield the stored parts; then compute, store and yield the missing images. OSError: a part
        cannot be stored, for example because the disk is full."""
        self._folder.mkdir(parents=True, exist_ok=True)
        is_missing = torch.ones(total, dtype=torch.bool)
        for part, rows in self.read_parts():
            is_missing[part.start : part.stop] = False
            yield part, rows
        missing = is_missing.nonzero().flatten().tolist()
        if not missing:
            return
        start = partial(_start_renumbered, start, missing)
        for places, rows in self._map_parts(start, len(missing), largest=largest):
            parts = split_into_ranges([missing[place] for place in places])
            lengths = [len(part) for part in parts]
            for part, part_rows in zip(parts, rows.split(lengths), strict=True):
                with atomic_file(self._folder / f"{part.start:09d}.safetensors") as file:
                    save_file({ROWS: part_rows.contiguous()}, file)
                yield part, part_rows

    def read_parts(self) -> Iterator[tuple[range, Tensor]]:
        """Yield the image numbers and rows of each stored part in ascending order. A damaged file
        is deleted and its images are not yielded."""
        for file in sorted(self._folder.glob("*.safetensors")):
            try:
                first, rows = int(file.stem), load_file(file)[ROWS]
            except (ValueError, SafetensorError):
                file.unlink()
                continue
            yield range(first, first + len(rows)), rows

    def rows(self, numbers: Sequence[int], width: int) -> Tensor:
        """Return the first `width` columns of the stored rows of n images `numbers`: (n, width)."""
        files = {int(file.stem): file for file in sorted(self._folder.glob("[0-9]*.safetensors"))}
        firsts, rows = list(files), []
        for number in numbers:
            first = firsts[bisect_right(firsts, number) - 1]
            with safe_open(files[first], "pt") as file:
                at = number - first
                rows.append(file.get_slice(ROWS)[at : at + 1, :width])
        return torch.cat(rows)


def split_into_ranges(numbers: Sequence[int]) -> list[range]:
    """Split ascending numbers into ranges of consecutive numbers."""
    gaps = np.flatnonzero(np.diff(numbers) > 1) + 1
    return [range(int(part[0]), int(part[-1]) + 1) for part in np.split(numbers, gaps) if len(part)]


def _start_renumbered(start: StartWork, missing: list[int], device: torch.device) -> Work:
    """Start work on `device` for the image numbers `missing`. The returned `Work` takes indices
    into `missing` instead of image numbers."""
    work = start(device)

    def work_on_places(places: range) -> Tensor:
        return torch.cat([work(part) for part in split_into_ranges([missing[p] for p in places])])

    return work_on_places
