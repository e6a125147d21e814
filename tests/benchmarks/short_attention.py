"""Measure attention of short sequences on a GPU: torch's fused kernels and ours, one line each.

python tests/benchmarks/short_attention.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

SHAPES = [
    (5472, 8, 22, 64, 0.1),
    (72256, 4, 22, 64, 0.1),
    (72256, 4, 3, 32, 0),
    (960352, 4, 3, 16, 0),
]
"""Rows, heads, positions, elements and dropout in a step of `mar-l` with 32 images. Attention over
the three positions of a pixel is causal."""
MOST_ROWS = 2**15
REPEATS = 5


def attend_fused(backend: SDPBackend, heads_3BHSd: Tensor, *, causal: bool, drop: float) -> Tensor:
    with sdpa_kernel(backend):
        parts = [
            F.scaled_dot_product_attention(*part, dropout_p=drop, is_causal=causal)
            for part in zip(*(x.split(MOST_ROWS) for x in heads_3BHSd), strict=True)
        ]
    return torch.cat(parts).transpose(1, 2).flatten(2)


def milliseconds(attend: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> tuple[float, float]:
    """Return the median milliseconds of forward and backward after one warm-up run."""
    rows, heads, length, width = shape
    options = {"device": "cuda", "dtype": torch.bfloat16}
    x = torch.randn(rows, length, 3, heads, width, **options, requires_grad=True)
    grad = torch.randn(rows, length, heads * width, **options)
    times = []
    for _ in range(1 + REPEATS):
        x.grad = None
        events = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
        events[0].record()
        mixed = attend(x.permute(2, 0, 3, 1, 4))
        events[1].record()
        mixed.backward(grad)
        events[2].record()
        torch.cuda.synchronize()
        times.append([a.elapsed_time(b) for a, b in pairwise(events)])
    forward, backward = zip(*times[1:], strict=True)
    return median(forward), median(backward)


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("there is no CUDA GPU here: run this on a machine with one")
    from fractal_model.model.kernels.short_attention import short_attention

    kernels = {
        "cuDNN": partial(attend_fused, SDPBackend.CUDNN_ATTENTION),
        "flash": partial(attend_fused, SDPBackend.FLASH_ATTENTION),
        "memory-efficient": partial(attend_fused, SDPBackend.EFFICIENT_ATTENTION),
        "ours": short_attention,
    }
    for *shape, drop in SHAPES:
        for name, kernel in kernels.items():
            attend = partial(kernel, causal=not drop, drop=drop)
            forward, backward = milliseconds(attend, tuple(shape))
            print(f"{shape} {name}: {forward:.2f} + {backward:.2f} ms")


if __name__ == "__main__":
    main()
