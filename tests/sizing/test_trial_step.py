"""A proposal is tried for one real training step, and planned again with its time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fractal_model.common.errors import FractalError
from fractal_model.config.params import Size
from fractal_model.data.manifest import read_manifest
from fractal_model.sizing import trial_step
from fractal_model.sizing.choices import ImageSet
from fractal_model.sizing.proposal import propose
from tests.support.sizing import request
from tests.support.tiny_files import save_images


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "tiny"
    return save_images(folder, size=8, count=40, split="train")


def test_the_speed_of_a_step_decides_the_epochs(data):
    images = ImageSet.of(read_manifest(data))
    start = request(images, budget=60.0, speed=1e6)
    proposal, speed = trial_step.propose_and_try(start, "tiny", data)
    assert speed > 1e7  # the guess was far too low
    assert proposal.training["epochs"].value > propose(start).training["epochs"].value


def test_a_step_that_does_not_fit_is_tried_with_fewer_images(data, monkeypatch):
    images = ImageSet.of(read_manifest(data))
    tried = []

    def measure(size: Size, place: Path) -> trial_step.StepTime:
        tried.append(size.training.images_per_worker)
        if tried[-1] > 2:
            raise trial_step.OutOfMemory("too large")
        return trial_step.StepTime(seconds_per_image=0.01, cpu_share=0.2)

    monkeypatch.setattr(trial_step, "time_step", measure)
    proposal, _ = trial_step.propose_and_try(request(images), "tiny", data)
    assert any("it had 20% of its CPU" in note for note in proposal.notes)
    assert tried[:2] == [4, 2]
    assert proposal.training["images_per_worker"].value == 2


def test_a_step_that_never_fits_is_an_error(data, monkeypatch):
    def fail(size: Size, place: Path) -> trial_step.StepTime:
        raise trial_step.OutOfMemory("too large")

    monkeypatch.setattr(trial_step, "time_step", fail)
    with pytest.raises(trial_step.OutOfMemory, match="too large"):
        trial_step.propose_and_try(request(ImageSet.of(read_manifest(data))), "tiny", data)


def end_process(size: Size, place: Path) -> trial_step.StepTime:
    os._exit(137)  # as the system ends a process that takes too much memory


def test_a_child_that_the_system_ends_is_out_of_memory(data, monkeypatch):
    monkeypatch.setattr(trial_step, "_time_step", end_process)
    size = propose(request(ImageSet.of(read_manifest(data)))).size("tiny")
    with pytest.raises(FractalError, match="of 4 images does not fit the memory: free some"):
        trial_step.time_step(size, data)
