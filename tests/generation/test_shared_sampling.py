"""Requests of several threads are sampled together, each with its own images."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import pytest
import torch

from fractal_model.common.errors import FractalError
from fractal_model.config.sampling import SamplingConfig
from fractal_model.generation import shared_sampling
from fractal_model.generation.sample_images import collect_images
from fractal_model.generation.shared_sampling import BusyError, SharedSampling, Wanted
from tests.support import tiny_model

PLAIN, GUIDED = SamplingConfig(), SamplingConfig(guidance=3.0)


class Recorder:
    """Samples, but the first batch waits until `go` is set; remembers the size of each batch."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.go, self.began = Event(), Event()

    def __call__(self, model, settings, labels, seeds):
        self.sizes.append(len(seeds))
        self.began.set()
        assert self.go.wait(60)
        return collect_images(model, settings, labels, seeds)


@pytest.fixture
def recorder(monkeypatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(shared_sampling, "collect_images", recorder)
    return recorder


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def draw_while_the_first_waits(sampling, recorder, requests):
    """Let the first request begin, and the others gather while it is sampled. Return the futures of
    all."""
    with ThreadPoolExecutor(len(requests)) as pool:
        futures = [pool.submit(sampling.draw, requests[0])]
        assert recorder.began.wait(60)
        futures += [pool.submit(sampling.draw, request) for request in requests[1:]]
        images = sum(len(wanted.seeds) for request in requests[1:] for wanted in request)
        wait_until(lambda: sampling.waiting == images)
        recorder.go.set()
    return futures


def wanted(settings, *classes, seed=0):
    return Wanted(settings, torch.tensor(classes), range(seed, seed + len(classes)))


def test_requests_that_wait_are_one_batch_for_each_setting(recorder):
    model = tiny_model("mar")
    requests = [[wanted(PLAIN, i % 4, seed=i)] for i in range(5)]
    requests += [[wanted(GUIDED, 1, seed=i)] for i in range(2)]
    requests.append([wanted(PLAIN, 2, 3, seed=7), wanted(GUIDED, 0, seed=9)])
    sampling = SharedSampling(model, most_waiting=100)
    futures = draw_while_the_first_waits(sampling, recorder, requests)
    assert recorder.sizes[0] == 1 and sorted(recorder.sizes[1:]) == [3, 6]
    for future, request in zip(futures, requests, strict=True):
        for images, each in zip(future.result(), request, strict=True):
            assert images.equal(collect_images(model, each.settings, each.labels, each.seeds))


def test_requests_of_the_same_moment_are_one_batch(recorder):
    recorder.go.set()
    sampling, start = SharedSampling(tiny_model("mar"), most_waiting=100), Barrier(4)

    def draw(seed):
        start.wait(60)
        return sampling.draw([wanted(PLAIN, 1, seed=seed)])

    with ThreadPoolExecutor(4) as pool:
        images = [future.result(60)[0] for future in [pool.submit(draw, i) for i in range(4)]]
    assert len(images) == 4 and len(recorder.sizes) <= 2 and sum(recorder.sizes) == 4


def test_too_many_images_are_not_waited_for(recorder):
    sampling = SharedSampling(tiny_model("mar"), most_waiting=5)
    four = [wanted(PLAIN, 0, 1, 2, 3)]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(sampling.draw, [wanted(PLAIN, 0)])
        assert recorder.began.wait(60)
        second = pool.submit(sampling.draw, four)
        wait_until(lambda: sampling.waiting == 4)
        with pytest.raises(BusyError, match="4 images wait already: ask again"):
            sampling.draw([wanted(PLAIN, 0), wanted(GUIDED, 1)])
        assert sampling.waiting == 4  # nothing of the refused request stays
        recorder.go.set()
        assert len(first.result()[0]) == 1 and len(second.result()[0]) == 4
    assert len(sampling.draw([wanted(PLAIN, *[0] * 9)])[0]) == 9  # alone, any number


def test_an_error_reaches_those_of_its_batch_alone(recorder):
    sampling = SharedSampling(tiny_model("mar"), most_waiting=100)
    bad, beside, other = [wanted(PLAIN, 9)], [wanted(PLAIN, 1)], [wanted(GUIDED, 1)]
    requests = [[wanted(PLAIN, 0)], bad, beside, other]
    futures = draw_while_the_first_waits(sampling, recorder, requests)
    for future in futures[1:3]:
        with pytest.raises(FractalError, match="the classes are .* 9, expected 0 … 3"):
            future.result()
    assert len(futures[0].result()[0]) == len(futures[3].result()[0]) == 1
    assert len(sampling.draw([wanted(PLAIN, 1)])[0]) == 1
