"""Commands start a local Ray cluster or connect to the one in RAY_ADDRESS."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fractal_model.common.errors import FractalError
from fractal_model.parallel.ray_cluster import ray_cluster
from fractal_model.training.ray_train.run import run_training
from tests.support.recipes import RECIPE, make_job

CODE = """
import os
from fractal_model.parallel.ray_cluster import ray_cluster
import ray
with ray_cluster(cpus=1):
    task = ray.remote(lambda: os.environ["FRACTAL_TEST"])
    environment = {"env_vars": {"FRACTAL_TEST": "reached"}}
    print(ray.get(task.options(runtime_env=environment).remote(), timeout=120))
    print({node["NodeManagerAddress"] for node in ray.nodes()})
print(ray.is_initialized())
"""


def test_workers_start_on_loopback_and_from_a_path_with_a_space(tmp_path):
    environment = tmp_path / "with space"
    environment.symlink_to(sys.prefix)
    done = subprocess.run(
        [environment / "bin/python", "-c", CODE], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["reached", "{'127.0.0.1'}", "False"]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:port"])
def test_a_cluster_that_does_not_answer_is_named(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with (
        pytest.raises(FractalError, match=f"RAY_ADDRESS={address} does not answer"),
        ray_cluster(1),
    ):
        pass


def test_a_cluster_that_does_not_start_is_one_line(monkeypatch):
    def time_out(*arguments, **options):
        raise Exception("The current node timed out during startup.\nThe GCS is overloaded.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", time_out)
    line = r"Ray did not start on this machine \(The current node .*\): its load is \d+ on \d+ CPU"
    with pytest.raises(FractalError, match=line), ray_cluster(1):
        pass


def test_an_address_for_jobs_is_refused(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with (
        pytest.raises(FractalError, match="takes only jobs, and this command is not a job"),
        ray_cluster(1),
    ):
        pass


def test_a_training_with_more_workers_than_cpus_is_refused_at_once(tmp_path):
    recipe = RECIPE.model_copy(update={"workers": 4, "min_workers": 4})
    job = make_job(tmp_path, recipe=recipe)
    with ray_cluster(1), pytest.raises(FractalError, match="needs? 4 CPU, the Ray cluster has 1"):
        run_training(job, on_report=print)
