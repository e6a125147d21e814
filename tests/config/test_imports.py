"""params.yaml is read without the numerical libraries, which take seconds to load."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"datasets", "matplotlib", "mlflow", "numpy", "pandas", "prefect", "ray", "torch"}


@pytest.mark.parametrize("module", ["fractal_model", "fractal_model.config.params"])
def test_reading_params_loads_no_numerical_library(module):
    listing = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", listing], capture_output=True, text=True, check=True
    ).stdout.split()
    assert module in loaded
    assert not HEAVY & set(loaded)
