"""Work on many images that survives being stopped: each part's rows are a file as soon as they are
done, and only what is missing is done again.

Decided here: one safetensors file a part, named after its images, written whole; what was begun is
simply not there. A `MapParts` around another, so that whoever asks for the work need not know.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fractal_model.common.files import file_written_whole
from fractal_model.parallel.parts import MapParts, StartWork, Work

ROWS = "rows"


class KeptParts:
    """The `MapParts` that keeps rows in `folder`, whose name says what decides them."""

    def __init__(self, folder: Path, map_parts: MapParts) -> None:
        self._folder = folder
        self._map_parts = map_parts

    def __call__(
        self, start: StartWork, total: int, *, largest: int
    ) -> Iterator[tuple[range, Tensor]]:
        """First what is kept, then what is made. OSError: the disk is full."""
        self._folder.mkdir(parents=True, exist_ok=True)
        missing = torch.ones(total, dtype=torch.bool)
        for part, rows in self.kept():
            missing[part.start : part.stop] = False
            yield part, rows
        wanted = missing.nonzero().flatten().tolist()
        if not wanted:
            return
        for places, rows in self._map_parts(
            partial(_renumbered, start, wanted), len(wanted), largest=largest
        ):
            at = 0
            for part in runs([wanted[place] for place in places]):
                ours = rows[at : at + len(part)]
                at += len(part)
                self._keep(part, ours)
                yield part, ours

    def kept(self) -> Iterator[tuple[range, Tensor]]:
        """By number of the first image. A file that cannot be read is removed."""
        for file in sorted(self._folder.glob("*.safetensors")):
            try:
                rows = load_file(file)[ROWS]
            except SafetensorError:
                file.unlink()
                continue
            first = int(file.stem)
            yield range(first, first + len(rows)), rows

    def rows(self, numbers: Sequence[int], width: int) -> Tensor:
        """The first `width` columns of some rows, (n, width), read from the disk."""
        files = {int(file.stem): file for file in sorted(self._folder.glob("*.safetensors"))}
        firsts = list(files)
        found = []
        for number in numbers:
            first = firsts[bisect_right(firsts, number) - 1]
            with safe_open(files[first], "pt") as content:
                at = number - first
                found.append(content.get_slice(ROWS)[at : at + 1, :width])
        return torch.cat(found)

    def _keep(self, part: range, rows: Tensor) -> None:
        with file_written_whole(self._folder / f"{part.start:09d}.safetensors") as partial_file:
            save_file({ROWS: rows.contiguous()}, partial_file)


def runs(numbers: Sequence[int]) -> list[range]:
    """Rising numbers as ranges without gaps."""
    found: list[range] = []
    for number in numbers:
        if found and found[-1].stop == number:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return found


def _renumbered(start: StartWork, wanted: list[int], device: torch.device) -> Work:
    work = start(device)

    def some(places: range) -> Tensor:
        return torch.cat([work(part) for part in runs([wanted[place] for place in places])])

    return some
