"""What a training worker holds in memory: 32 of them stand on four machines."""

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
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert found.stdout.split() == []
