"""How a step's operations are counted."""

from __future__ import annotations

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from fractal_model.costs.benchmark import count_flops
from fractal_model.model.blocks import checkpoint_activations, run_blocks, vit_block

ROWS, POSITIONS, WIDTH = 2, 3, 16


def two_blocks() -> nn.ModuleList:
    return nn.ModuleList(vit_block(WIDTH, 2, causal=False, dropout=0.0) for _ in range(2))


def test_a_forward_pass_has_the_operations_of_its_products():
    x = torch.randn(ROWS, POSITIONS, WIDTH)
    tokens = ROWS * POSITIONS
    products = 12 * 2 * tokens * WIDTH**2  # qkv 3, projection 1, feed-forward 8
    attention = 2 * 2 * tokens * POSITIONS * WIDTH
    assert count_flops(lambda: run_blocks(two_blocks(), x)) == 2 * (products + attention)


def test_counting_keeps_no_activations_that_checkpointing_frees():
    blocks = two_blocks()
    checkpoint_activations(blocks)
    storages: list[StorageWeakRef] = []
    alive: list[int] = []

    def count_alive(*args: object) -> None:
        alive.append(sum(not storage.expired() for storage in storages))
        storages.append(StorageWeakRef(args[-1].untyped_storage()))

    for block in blocks:
        block.norm2.register_forward_hook(count_alive)

    def step() -> None:
        x = torch.randn(ROWS, POSITIONS, WIDTH, requires_grad=True)
        run_blocks(blocks, x).sum().backward()

    count_flops(step)
    assert alive == [0, 0, 0, 0]  # Both blocks forward, then the last and the first block again.
