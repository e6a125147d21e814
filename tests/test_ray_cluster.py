"""The Ray instance that a command starts for itself."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import os
from fractal_model.ray_cluster import ray_cluster
import ray
with ray_cluster(cpus=1):
    task = ray.remote(lambda: os.environ["FRACTAL_TEST"])
    environment = {"env_vars": {"FRACTAL_TEST": "reached"}}
    print(ray.get(task.options(runtime_env=environment).remote(), timeout=120))
    print({node["NodeManagerAddress"] for node in ray.nodes()})
print(ray.is_initialized())
"""


def test_starts_workers_from_a_path_with_a_space_and_on_loopback(tmp_path):
    environment = tmp_path / "with space"
    environment.symlink_to(sys.prefix)
    done = subprocess.run(
        [environment / "bin/python", "-c", CODE], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["reached", "{'127.0.0.1'}", "False"]
