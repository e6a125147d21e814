"""Samples of an evaluation: equal for any cut of the work, and only missing ones are made."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fractal_model.common.errors import FractalError
from fractal_model.config.sampling import SamplingConfig
from fractal_model.data.digits import prepare_digits
from fractal_model.data.prepared import open_prepared
from fractal_model.evaluation import samples as module
from fractal_model.evaluation.protocol import ImageSource
from fractal_model.evaluation.samples import (
    FeatureNetworks,
    draw_samples,
    extract,
    extract_sample_features,
    held_out_features,
)
from fractal_model.generation.sample_images import sample_images
from fractal_model.metrics.inception import inception_checksum
from fractal_model.parallel.parts import map_in_this_process
from fractal_model.parallel.ray_cluster import ray_cluster
from fractal_model.parallel.ray_workers import map_over_workers
from tests.support import random_images, tiny_model
from tests.support.protocols import SETTINGS, manifest, protocol

SOURCE = ImageSource(
    weights="model", sampling=SamplingConfig(guidance=2.0), seed=5, likelihood_passes=1
)
PROTOCOL = protocol(
    SETTINGS.model_copy(update={"samples_per_class": 3}), of=manifest(classes=4)
).model_copy(update={"network_checksum": inception_checksum(), "dinov2_checksum": "sha256:2"})


class Pixels:
    """In place of Inception, which is tested elsewhere: as wide, and quick. Must pickle."""

    def load(self, device, protocol):
        return [lambda images: images.flatten(1)[:, :12].float().repeat(1, 171)[:, :2048]]

    dinov2 = None


def draw(
    folder, networks=None, map_parts=map_in_this_process, largest=4, progress=lambda done: None
):
    return draw_samples(
        tiny_model("mar"),
        PROTOCOL,
        SOURCE,
        networks or Pixels(),
        folder,
        progress,
        largest=largest,
        map_parts=map_parts,
    )


def expected_images():
    labels = torch.arange(4).repeat_interleave(3)
    parts = sample_images(tiny_model("mar"), SOURCE.sampling, labels, range(5, 17))
    return torch.cat([images for _, images in parts])


def test_images_features_and_seconds_are_read_back(tmp_path):
    done = []
    found = draw(tmp_path, progress=done.append)
    images = found.images.images(range(12))
    assert images.equal(expected_images())
    assert found.inception.equal(Pixels().load("cpu", PROTOCOL)[0](images))
    assert found.dinov2 is None and found.seconds_per_image > 0
    assert found.images.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert done == [1, 5, 9, 12]


def stopping(start, total, *, largest, parts):
    for number, found in enumerate(map_in_this_process(start, total, largest=largest)):
        if number == parts:
            raise KeyboardInterrupt
        yield found


def counting(start, total, *, largest, made):
    made.append(total)
    return map_in_this_process(start, total, largest=largest)


def test_a_stopped_evaluation_makes_the_missing_images_alone(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path, map_parts=partial(stopping, parts=2))
    made = []
    found = draw(tmp_path, map_parts=partial(counting, made=made))
    assert made == [12 - 5]
    assert found.images.images(range(12)).equal(expected_images())
    made.clear()
    again = draw(tmp_path, map_parts=partial(counting, made=made))
    assert made == [] and again.inception.equal(found.inception)
    assert again.seconds_per_image == found.seconds_per_image


def test_features_do_not_depend_on_the_cut_or_on_the_threads():
    network = FeatureNetworks("auto").load(torch.device("cpu"), PROTOCOL)[0]
    images, threads = random_images(11), torch.get_num_threads()
    whole = extract(network, images)
    assert whole.shape == (11, 2048) and torch.get_num_threads() == threads
    torch.set_num_threads(1)
    try:
        parts = [extract(network, images[start : start + 3]) for start in range(0, 11, 3)]
    finally:
        torch.set_num_threads(threads)
    assert whole.equal(torch.cat(parts))


@pytest.mark.slow
def test_two_workers_draw_and_see_the_same(tmp_path):
    """Through the real network: what the distances are computed from is equal bit by bit."""
    networks = FeatureNetworks("auto")
    one = draw(tmp_path / "one", networks)
    with ray_cluster(cpus=2):
        two = draw(tmp_path / "two", networks, map_parts=partial(map_over_workers, workers=2))
    assert two.images.images(range(12)).equal(one.images.images(range(12)))
    assert two.inception.equal(one.inception)


def test_files_are_seen_as_drawn_images_are(tmp_path):
    found = draw(tmp_path, FeatureNetworks("auto"))
    done = []
    seen = extract_sample_features(
        found.images, PROTOCOL, FeatureNetworks("auto"), torch.device("cpu"), done.append
    )
    assert seen.inception.equal(found.inception) and done == [8, 12]
    assert seen.seconds_per_image is None


def test_features_of_validation_images_are_of_so_many_at_most(tmp_path, monkeypatch):
    prepare_digits(tmp_path / "digits", validation_images=20, seed=0)
    split = open_prepared(tmp_path / "digits", "validation")
    images, _ = split.load_all()
    all_of_them = {tuple(row) for row in images.flatten(1).float().tolist()}

    def pixels(batch: torch.Tensor) -> torch.Tensor:
        return batch.flatten(1).float()

    assert {tuple(row) for row in held_out_features(split, pixels).tolist()} == all_of_them
    monkeypatch.setattr(module, "HELD_OUT_IMAGES", 11)
    some = {tuple(row) for row in held_out_features(split, pixels).tolist()}
    assert len(some) == 11 and some < all_of_them


class Named:
    """A network with the checksum of its weights."""

    def __init__(self, weights_checksum, network):
        self.weights_checksum = weights_checksum
        self._network = network

    def __call__(self, images):
        return self._network(images)


def named_networks(monkeypatch, inception=PROTOCOL.network_checksum, dinov2="sha256:2"):
    pixels = Named(inception, Pixels().load(None, PROTOCOL)[0])
    corner = Named(dinov2, lambda images: images[:, :, 0, 0] / 2)
    monkeypatch.setattr(module, "load_inception", lambda *given: pixels)
    monkeypatch.setattr(module, "load_dinov2", lambda *given: corner)


@pytest.mark.parametrize(("network", "name"), [("inception", "Inception"), ("dinov2", "DINOv2")])
def test_weights_that_are_not_the_protocols(tmp_path, monkeypatch, network, name):
    named_networks(monkeypatch, **{network: "sha256:another"})
    message = f"the {name} weights of this machine are sha256:another, the protocol's are sha"
    with pytest.raises(FractalError, match=message):
        draw(tmp_path / "parts", FeatureNetworks("auto", tmp_path / "weights"))
    assert list((tmp_path / "parts").iterdir()) == [], "nothing is kept under the protocol's name"


def test_dinov2_features_come_beside_inceptions(tmp_path, monkeypatch):
    named_networks(monkeypatch)
    found = draw(tmp_path, FeatureNetworks("auto", tmp_path / "weights"))
    images = found.images.images(range(12))
    assert found.inception.shape == (12, 2048)
    assert found.dinov2.equal(images[:, :, 0, 0] / 2)
