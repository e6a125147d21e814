"""Ray workers give the results of one process, are restarted, and fail with one line."""

from __future__ import annotations

import os
import socket
from functools import partial

import numpy as np
import pytest
import ray
import torch

from fractal_model.common.errors import FractalError
from fractal_model.common.hardware import Hardware
from fractal_model.config.sampling import SamplingConfig
from fractal_model.data.prepared import open_prepared
from fractal_model.evaluation.measure_likelihood import measure_likelihood
from fractal_model.generation.sample_images import sample_images
from fractal_model.parallel.parts import map_in_this_process
from fractal_model.parallel.ray_cluster import ray_cluster
from fractal_model.parallel.ray_workers import map_over_workers
from fractal_model.parallel.split import hardware, split_over_workers
from tests.support import tiny_model
from tests.support.tiny_files import save_images

PAIR = partial(map_over_workers, workers=2)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with ray_cluster(cpus=2):
        yield
    assert not ray.is_initialized()


def test_the_likelihood_of_workers_is_equal_bit_by_bit(tmp_path):
    split = open_prepared(save_images(tmp_path / "tiny"), "validation")
    likelihoods = []
    for map_parts in (map_in_this_process, PAIR):
        done = []
        result = measure_likelihood(
            tiny_model("mar"), split, done.append, passes=3, seed=1, map_parts=map_parts
        )
        assert done == sorted(done) and done[-1] == 11
        likelihoods.append(result.per_pass)
    assert likelihoods[0].equal(likelihoods[1])


def test_the_images_of_workers_are_equal_bit_by_bit():
    labels = torch.tensor([0, 1, 2, -1, 3, 1])
    settings = SamplingConfig(guidance=2.0)
    samples = []
    for map_parts in (map_in_this_process, PAIR):
        images = np.zeros((6, 3, 4, 4), np.uint8)
        parts = sample_images(tiny_model("mar"), settings, labels, range(3, 9), map_parts=map_parts)
        for part, rows in parts:
            images[part.start : part.stop] = rows
        samples.append(images)
    assert np.array_equal(*samples)


def _die_once(folder, device):
    def work(part):
        file = folder / f"{part.start}"
        if part.start == 0 and not file.exists():
            file.touch()
            os._exit(1)
        return torch.tensor(list(part))

    return work


@pytest.mark.faults
def test_a_worker_that_dies_is_restarted(tmp_path):
    parts = dict(map_over_workers(partial(_die_once, tmp_path), 10, workers=2))
    assert (tmp_path / "0").exists()
    assert sorted(int(n) for rows in parts.values() for n in rows) == list(range(10))


def _always_die(device):
    return lambda part: os._exit(1)


def _raise_user_error(device):
    raise FractalError("the folder x\nis missing")


def _divide_by_zero(device):
    return lambda part: 1 // 0


@pytest.mark.parametrize(
    ("start", "message"),
    [
        pytest.param(
            _always_die,
            "^a worker died 3 times, perhaps because memory ran out: give fewer workers",
            marks=pytest.mark.slow,
        ),
        (_raise_user_error, "^the folder x is missing$"),
        (_divide_by_zero, "^a worker failed: ZeroDivisionError: "),
    ],
)
def test_the_failure_of_a_worker_is_one_line(start, message):
    with pytest.raises(FractalError, match=message) as raised:
        list(map_over_workers(start, 4, workers=1))
    assert "\n" not in str(raised.value)


def test_more_workers_than_cpus_are_refused():
    with pytest.raises(FractalError, match=r"number of workers is 3.*room for 2, .*give 1 … 2 or"):
        list(map_over_workers(_divide_by_zero, 4, workers=3))


def test_a_machine_that_does_not_see_a_file_is_named_before_the_work_begins(tmp_path):
    present, gone = tmp_path / "present", tmp_path / "gone"
    present.touch()
    started = tmp_path / "started"
    with pytest.raises(FractalError) as raised:
        list(map_over_workers(partial(_touch, started), 2, workers=1, files=[present, gone]))
    assert str(raised.value).startswith(
        f"the machine {socket.gethostname()} of the Ray cluster does not see {gone}: "
        f"give all its machines the same files"
    )
    assert not started.exists() and "\n" not in str(raised.value)
    with pytest.raises(FractalError, match=rf"{gone} \(and 1 more\): "):
        list(map_over_workers(_start_numbers, 2, workers=1, files=[gone, tmp_path / "too"]))


def _start_numbers(device):
    return lambda part: torch.tensor(list(part))


def _touch(file, device):
    file.touch()
    return _start_numbers(device)


def test_the_hardware_of_workers_is_that_of_the_living_machines(monkeypatch):
    alive = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0, "accelerator_type:H100": 1.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [alive, {**alive, "Alive": False}])
    cluster_hardware = hardware(2)
    assert cluster_hardware.gpus == ("H100", "H100")
    assert (cluster_hardware.cpus, cluster_hardware.workers) == (2, 2)
    assert hardware(1) == Hardware.here(1), "a single worker is this process"


def test_the_number_of_workers_decides_who_computes():
    assert split_over_workers(1) is map_in_this_process
    assert split_over_workers(None) is map_in_this_process
    assert split_over_workers(2).keywords == {"workers": 2, "files": ()}
    assert split_over_workers(0).keywords["workers"] == 2, "the cluster of these tests has two CPUs"
    with pytest.raises(FractalError, match="number of workers is -1: give 1 or more, or 0"):
        split_over_workers(-1)
