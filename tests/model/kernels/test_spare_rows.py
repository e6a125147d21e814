"""Spare rows make few shapes on a CPU."""

from __future__ import annotations

import torch

from fractal_model.model.kernels.spare_rows import spare_rows


def test_masks_make_few_numbers_of_rows():
    found = set()
    for rows in range(1024, 2048):
        spare = spare_rows(torch.zeros(rows))
        assert 0 <= spare <= rows / 16
        found.add(rows + spare)
    assert len(found) == 17


def test_few_rows_and_other_devices_have_none_to_spare():
    assert [spare_rows(torch.zeros(rows)) for rows in range(32)] == [0] * 32
    assert spare_rows(torch.zeros(33)) == 1
    assert spare_rows(torch.zeros(1025, device="meta")) == 0
