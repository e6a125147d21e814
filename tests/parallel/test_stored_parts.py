"""Work that goes on where it was stopped: nothing twice, nothing left out, the same rows."""

from __future__ import annotations

import pytest
import torch

from fractal_model.parallel.parts import map_in_this_process
from fractal_model.parallel.stored_parts import StoredParts, runs


class Squares:
    """Remembers which numbers it was asked for."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.asked: list[int] = []
        self._left = stop_after

    def __call__(self, device):
        def work(part):
            if self._left == 0:
                raise KeyboardInterrupt
            self._left -= 1
            self.asked += part
            return torch.tensor([[number**2] for number in part])

        return work


def rows_of(folder, start, total=20, largest=4):
    rows = torch.full((total, 1), -1)
    for part, found in StoredParts(folder, map_in_this_process)(start, total, largest=largest):
        rows[part.start : part.stop] = found
    return rows.flatten().tolist()


EXPECTED = [number**2 for number in range(20)]


def test_a_stopped_work_makes_only_what_is_missing(tmp_path):
    first, second, third = Squares(stop_after=3), Squares(), Squares()
    with pytest.raises(KeyboardInterrupt):
        rows_of(tmp_path, first)
    assert first.asked == list(range(9))
    assert rows_of(tmp_path, second) == EXPECTED
    assert second.asked == list(range(9, 20))
    assert rows_of(tmp_path, third) == EXPECTED and third.asked == []


def test_single_rows_are_read_back(tmp_path):
    wide = lambda device: lambda part: torch.tensor([[n, n + 1, n + 2] for n in part])  # noqa: E731
    kept = StoredParts(tmp_path, map_in_this_process)
    list(kept(wide, 20, largest=4))
    assert kept.rows([17, 0, 5], 2).tolist() == [[17, 18], [0, 1], [5, 6]]


def test_holes_are_filled_and_damaged_files_made_again(tmp_path):
    rows_of(tmp_path, Squares())
    files = sorted(tmp_path.iterdir())
    assert [int(file.stem) for file in files] == [0, 1, 5, 9, 13, 17]
    files[1].unlink()
    files[0].rename(tmp_path / ".000000000.partial.safetensors")  # killed before it was renamed
    files[3].write_bytes(files[3].read_bytes()[:-3])
    again = Squares()
    assert rows_of(tmp_path, again) == EXPECTED
    assert sorted(again.asked) == [0, 1, 2, 3, 4, 9, 10, 11, 12]
    assert not list(tmp_path.glob(".*"))


def test_runs():
    assert runs([1, 2, 3, 7, 9, 10]) == [range(1, 4), range(7, 8), range(9, 11)]
    assert runs([]) == []
