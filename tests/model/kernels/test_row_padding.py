"""Row padding leaves few different numbers of rows on a CPU."""

from __future__ import annotations

import torch

from fractal_model.model.kernels.row_padding import padding_rows


def test_there_are_few_padded_numbers_of_rows():
    padded = set()
    for rows in range(1024, 2048):
        padding = padding_rows(torch.zeros(rows))
        assert 0 <= padding <= rows / 16
        padded.add(rows + padding)
    assert len(padded) == 17


def test_few_rows_and_other_devices_get_no_padding():
    assert [padding_rows(torch.zeros(rows)) for rows in range(32)] == [0] * 32
    assert padding_rows(torch.zeros(33)) == 1
    assert padding_rows(torch.zeros(1025, device="meta")) == 0
