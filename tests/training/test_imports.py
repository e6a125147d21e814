"""A training worker imports few libraries, because many workers share a machine's memory."""

from __future__ import annotations

import subprocess
import sys

NOT_NEEDED = (
    "timm",
    "torchvision",
    "httpx",
    "mlflow",
    "prefect",
    "matplotlib",
    "scipy",
    "datasets",
)


def test_a_worker_imports_no_library_that_it_does_not_need():
    code = (
        "import sys, fractal_model.training.ray_train.worker\n"
        f"print(*(name for name in {NOT_NEEDED} if name in sys.modules))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert process.stdout.split() == []
