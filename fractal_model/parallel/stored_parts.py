"""Work on many images that survives being stopped: each part's rows become a file as soon as they
are done, and only missing rows are computed again.

Decided here: a part is one safetensors file, named after its first image and written whole, so that
a part that was interrupted leaves no file. `StoredParts` wraps another `MapParts`: whoever asks for
the work need not know that it is kept.
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
    """The `MapParts` that keeps rows in `folder`; the folder's name identifies the work."""

    def __init__(self, folder: Path, map_parts: MapParts) -> None:
        self._folder = folder
        self._map_parts = map_parts

    def __call__(
        self, start: StartWork, total: int, *, largest: int
    ) -> Iterator[tuple[range, Tensor]]:
        """Yield the kept parts, then those computed now. OSError: the disk is full."""
        self._folder.mkdir(parents=True, exist_ok=True)
        is_missing = torch.ones(total, dtype=torch.bool)
        for part, rows in self.kept():
            is_missing[part.start : part.stop] = False
            yield part, rows
        missing = is_missing.nonzero().flatten().tolist()
        if not missing:
            return
        start = partial(_start_renumbered, start, missing)
        for places, rows in self._map_parts(start, len(missing), largest=largest):
            parts = runs([missing[place] for place in places])
            lengths = [len(part) for part in parts]
            for part, part_rows in zip(parts, rows.split(lengths), strict=True):
                with atomic_file(self._folder / f"{part.start:09d}.safetensors") as file:
                    save_file({ROWS: part_rows.contiguous()}, file)
                yield part, part_rows

    def kept(self) -> Iterator[tuple[range, Tensor]]:
        """Yield the kept parts by image number; remove damaged and unfinished files."""
        for file in sorted(self._folder.glob("*.safetensors")):
            try:
                first, rows = int(file.stem), load_file(file)[ROWS]
            except (ValueError, SafetensorError):
                file.unlink()
                continue
            yield range(first, first + len(rows)), rows

    def rows(self, numbers: Sequence[int], width: int) -> Tensor:
        """The first `width` columns of the rows with these numbers, (n, width), from the disk."""
        files = {int(file.stem): file for file in sorted(self._folder.glob("[0-9]*.safetensors"))}
        firsts, rows = list(files), []
        for number in numbers:
            first = firsts[bisect_right(firsts, number) - 1]
            with safe_open(files[first], "pt") as content:
                at = number - first
                rows.append(content.get_slice(ROWS)[at : at + 1, :width])
        return torch.cat(rows)


def runs(numbers: Sequence[int]) -> list[range]:
    """Split rising numbers into ranges without gaps."""
    gaps = np.flatnonzero(np.diff(numbers) > 1) + 1
    return [range(int(run[0]), int(run[-1]) + 1) for run in np.split(numbers, gaps) if len(run)]


def _start_renumbered(start: StartWork, missing: list[int], device: torch.device) -> Work:
    """The work on places in `missing` instead of image numbers."""
    work = start(device)
    return lambda places: torch.cat([work(part) for part in runs([missing[p] for p in places])])
