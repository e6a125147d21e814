"""One worker is this process, which needs no Ray."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
sys.modules.update(dict.fromkeys(("ray", "prefect", "fastapi", "mlflow")))
import fractal_model.evaluation.prepare_evaluation
from fractal_model.parallel.split import hardware, split_over_workers, worker_count
print(hardware(worker_count(1)).workers, split_over_workers(1).__name__)
"""


def test_an_evaluation_with_one_worker_needs_no_ray():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1 map_in_this_process\n"), done.stderr
