"""Stopped work continues where it was: every row is computed once and has the same value."""

from __future__ import annotations

import pytest
import torch

from fractal_model.parallel.parts import map_in_this_process
from fractal_model.parallel.stored_parts import StoredParts, split_into_ranges


class Squares:
    """Work that squares numbers and remembers which ones it computed."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.computed: list[int] = []
        self._left = stop_after

    def __call__(self, device):
        def work(part):
            if self._left == 0:
                raise KeyboardInterrupt
            self._left -= 1
            self.computed += part
            return torch.tensor([[number**2] for number in part])

        return work


def compute_rows(folder, start, total=20, largest=4):
    rows = torch.full((total, 1), -1)
    for part, squares in StoredParts(folder, map_in_this_process)(start, total, largest=largest):
        rows[part.start : part.stop] = squares
    return rows.flatten().tolist()


EXPECTED = [number**2 for number in range(20)]


def test_stopped_work_computes_only_missing_rows(tmp_path):
    first, second, third = Squares(stop_after=3), Squares(), Squares()
    with pytest.raises(KeyboardInterrupt):
        compute_rows(tmp_path, first)
    assert first.computed == list(range(9))
    assert compute_rows(tmp_path, second) == EXPECTED
    assert second.computed == list(range(9, 20))
    assert compute_rows(tmp_path, third) == EXPECTED and third.computed == []


def test_single_rows_are_read_back(tmp_path):
    wide = lambda device: lambda part: torch.tensor([[n, n + 1, n + 2] for n in part])  # noqa: E731
    stored = StoredParts(tmp_path, map_in_this_process)
    list(stored(wide, 20, largest=4))
    assert stored.rows([17, 0, 5], 2).tolist() == [[17, 18], [0, 1], [5, 6]]


def test_missing_and_damaged_files_are_computed_again(tmp_path):
    compute_rows(tmp_path, Squares())
    files = sorted(tmp_path.iterdir())
    assert [int(file.stem) for file in files] == [0, 1, 5, 9, 13, 17]
    files[1].unlink()
    files[0].rename(tmp_path / ".000000000.partial.safetensors")  # as if killed before the renaming
    files[3].write_bytes(files[3].read_bytes()[:-3])
    again = Squares()
    assert compute_rows(tmp_path, again) == EXPECTED
    assert sorted(again.computed) == [0, 1, 2, 3, 4, 9, 10, 11, 12]
    assert not list(tmp_path.glob(".*"))


def test_rising_numbers_are_split_at_gaps():
    assert split_into_ranges([1, 2, 3, 7, 9, 10]) == [range(1, 4), range(7, 8), range(9, 11)]
    assert split_into_ranges([]) == []
