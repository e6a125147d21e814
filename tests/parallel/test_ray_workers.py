"""The same work on Ray workers: equal results, retried workers, errors on one line."""

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
from fractal_model.evaluation.held_out_likelihood import measure_likelihood
from fractal_model.generation.sample_images import sample_images
from fractal_model.parallel.parts import map_in_this_process
from fractal_model.parallel.ray_cluster import ray_cluster
from fractal_model.parallel.ray_workers import hardware, map_over_workers, split_over_workers
from tests.support import tiny_model
from tests.support.tiny_files import save_images

PAIR = partial(map_over_workers, workers=2)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with ray_cluster(cpus=2):
        yield
    assert not ray.is_initialized()


def test_likelihood_is_equal_bit_by_bit(tmp_path):
    split = open_prepared(save_images(tmp_path / "tiny"), "validation")
    found = []
    for map_parts in (map_in_this_process, PAIR):
        done = []
        result = measure_likelihood(
            tiny_model("mar"), split, done.append, passes=3, seed=1, map_parts=map_parts
        )
        assert done == sorted(done) and done[-1] == 11
        found.append(result.per_pass)
    assert found[0].equal(found[1])


def test_images_are_equal_bit_by_bit():
    labels = torch.tensor([0, 1, 2, -1, 3, 1])
    settings = SamplingConfig(guidance=2.0)
    found = []
    for map_parts in (map_in_this_process, PAIR):
        images = np.zeros((6, 3, 4, 4), np.uint8)
        parts = sample_images(tiny_model("mar"), settings, labels, range(3, 9), map_parts=map_parts)
        for part, rows in parts:
            images[part.start : part.stop] = rows
        found.append(images)
    assert np.array_equal(*found)


def _dies_once(folder, device):
    def work(part):
        mark = folder / f"{part.start}"
        if part.start == 0 and not mark.exists():
            mark.touch()
            os._exit(1)
        return torch.tensor(list(part))

    return work


@pytest.mark.faults
def test_a_worker_that_dies_is_started_again(tmp_path):
    found = dict(map_over_workers(partial(_dies_once, tmp_path), 10, workers=2))
    assert (tmp_path / "0").exists()
    assert sorted(int(n) for rows in found.values() for n in rows) == list(range(10))


def _always_dies(device):
    return lambda part: os._exit(1)


def _mistake(device):
    raise FractalError("the folder x\nis missing")


def _defect(device):
    return lambda part: 1 // 0


@pytest.mark.parametrize(
    ("start", "message"),
    [
        pytest.param(
            _always_dies,
            "^a worker died 3 times, out of memory perhaps: give fewer workers",
            marks=pytest.mark.slow,
        ),
        (_mistake, "^the folder x is missing$"),
        (_defect, "^a worker failed: ZeroDivisionError: "),
    ],
)
def test_what_goes_wrong_is_one_line(start, message):
    with pytest.raises(FractalError, match=message) as raised:
        list(map_over_workers(start, 4, workers=1))
    assert "\n" not in str(raised.value)


def test_more_workers_than_the_cluster_has():
    with pytest.raises(FractalError, match=r"number of workers is 3.*room for 2, give 1 … 2 or"):
        list(map_over_workers(_defect, 4, workers=3))


def test_a_machine_that_does_not_see_a_file_is_named_before_the_work_begins(tmp_path):
    there, gone = tmp_path / "there", tmp_path / "gone"
    there.touch()
    assert list(map_over_workers(_numbers, 2, workers=1, files=[there]))
    started = tmp_path / "started"
    with pytest.raises(FractalError) as raised:
        list(map_over_workers(partial(_touch, started), 2, workers=1, files=[there, gone]))
    assert str(raised.value).startswith(
        f"the machine {socket.gethostname()} of the Ray cluster does not see {gone}: "
        f"give all its machines the same files"
    )
    assert not started.exists() and "\n" not in str(raised.value)
    with pytest.raises(FractalError, match=f"{gone}, and 1 more are missing like it"):
        list(map_over_workers(_numbers, 2, workers=1, files=[gone, tmp_path / "too"]))


def _numbers(device):
    return lambda part: torch.tensor(list(part))


def _touch(file, device):
    file.touch()
    return _numbers(device)


def test_the_record_names_the_clusters_machines(monkeypatch):
    alive = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0, "accelerator_type:H100": 1.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [alive, {**alive, "Alive": False}])
    found = hardware(2)
    assert found.gpus == ("H100", "H100") and (found.cpus, found.workers) == (2, 2)
    assert hardware(1) == Hardware.here(1), "a single worker is this process"


def test_who_shares_the_work():
    assert split_over_workers(1) is map_in_this_process
    assert split_over_workers(None) is map_in_this_process
    assert split_over_workers(2).keywords == {"workers": 2, "files": ()}
    assert split_over_workers(0).keywords["workers"] == 2, "the cluster of these tests has two CPUs"
    with pytest.raises(FractalError, match="-1 workers asked for: give 1 or more, or 0"):
        split_over_workers(-1)
