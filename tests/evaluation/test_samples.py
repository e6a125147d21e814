"""Samples of an evaluation: equal for any division of the work, and only missing ones are drawn."""

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
    extract_features,
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
    """A fast stand-in for Inception with features of the same width. Must pickle."""

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
    samples = draw(tmp_path, progress=done.append)
    images = samples.images.images(range(12))
    assert images.equal(expected_images())
    assert samples.inception.equal(Pixels().load("cpu", PROTOCOL)[0](images))
    assert samples.dinov2 is None and samples.seconds_per_image > 0
    assert samples.images.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert done == [1, 5, 9, 12]


def stop_after(start, total, *, largest, parts):
    for number, result in enumerate(map_in_this_process(start, total, largest=largest)):
        if number == parts:
            raise KeyboardInterrupt
        yield result


def note_total(start, total, *, largest, totals):
    totals.append(total)
    return map_in_this_process(start, total, largest=largest)


def test_a_stopped_evaluation_draws_only_the_missing_images(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path, map_parts=partial(stop_after, parts=2))
    totals = []
    samples = draw(tmp_path, map_parts=partial(note_total, totals=totals))
    assert totals == [12 - 5]
    assert samples.images.images(range(12)).equal(expected_images())
    totals.clear()
    again = draw(tmp_path, map_parts=partial(note_total, totals=totals))
    assert totals == [] and again.inception.equal(samples.inception)
    assert again.seconds_per_image == samples.seconds_per_image


def test_features_do_not_depend_on_the_batches_or_the_threads():
    network = FeatureNetworks("auto").load(torch.device("cpu"), PROTOCOL)[0]
    images, threads = random_images(11), torch.get_num_threads()
    whole = extract_features(network, images)
    assert whole.shape == (11, 2048) and torch.get_num_threads() == threads
    torch.set_num_threads(1)
    try:
        parts = [extract_features(network, images[start : start + 3]) for start in range(0, 11, 3)]
    finally:
        torch.set_num_threads(threads)
    assert whole.equal(torch.cat(parts))


@pytest.mark.slow
def test_two_workers_get_the_same_images_and_features_as_one(tmp_path):
    """With the real network: the features are equal bit by bit."""
    networks = FeatureNetworks("auto")
    one = draw(tmp_path / "one", networks)
    with ray_cluster(cpus=2):
        two = draw(tmp_path / "two", networks, map_parts=partial(map_over_workers, workers=2))
    assert two.images.images(range(12)).equal(one.images.images(range(12)))
    assert two.inception.equal(one.inception)


def test_images_from_files_have_the_same_features_as_drawn_ones(tmp_path):
    drawn = draw(tmp_path, FeatureNetworks("auto"))
    done = []
    from_files = extract_sample_features(
        drawn.images, PROTOCOL, FeatureNetworks("auto"), torch.device("cpu"), done.append
    )
    assert from_files.inception.equal(drawn.inception) and done == [8, 12]
    assert from_files.seconds_per_image is None


def test_held_out_features_are_of_a_limited_number_of_images(tmp_path, monkeypatch):
    prepare_digits(tmp_path / "digits", validation_images=20, seed=0)
    split = open_prepared(tmp_path / "digits", "validation")
    images, _ = split.load_all()
    every_row = {tuple(row) for row in images.flatten(1).float().tolist()}

    def pixels(batch: torch.Tensor) -> torch.Tensor:
        return batch.flatten(1).float()

    assert {tuple(row) for row in held_out_features(split, pixels).tolist()} == every_row
    monkeypatch.setattr(module, "HELD_OUT_IMAGES", 11)
    some_rows = {tuple(row) for row in held_out_features(split, pixels).tolist()}
    assert len(some_rows) == 11 and some_rows < every_row


class NetworkWithChecksum:
    """A network with the checksum of its weights."""

    def __init__(self, weights_checksum, network):
        self.weights_checksum = weights_checksum
        self._network = network

    def __call__(self, images):
        return self._network(images)


def replace_networks(monkeypatch, inception=PROTOCOL.network_checksum, dinov2="sha256:2"):
    pixels = NetworkWithChecksum(inception, Pixels().load(None, PROTOCOL)[0])
    corner = NetworkWithChecksum(dinov2, lambda images: images[:, :, 0, 0] / 2)
    monkeypatch.setattr(module, "load_inception", lambda *arguments: pixels)
    monkeypatch.setattr(module, "load_dinov2", lambda *arguments: corner)


@pytest.mark.parametrize(("network", "name"), [("inception", "Inception"), ("dinov2", "DINOv2")])
def test_weights_that_are_not_the_protocols_are_refused(tmp_path, monkeypatch, network, name):
    replace_networks(monkeypatch, **{network: "sha256:another"})
    message = f"the {name} weights of this machine have the checksum sha256:another, the protocol's"
    with pytest.raises(FractalError, match=message):
        draw(tmp_path / "parts", FeatureNetworks("auto", tmp_path / "weights"))
    assert list((tmp_path / "parts").iterdir()) == [], "no part is stored for the protocol"


def test_dinov2_features_are_extracted_beside_inceptions(tmp_path, monkeypatch):
    replace_networks(monkeypatch)
    samples = draw(tmp_path, FeatureNetworks("auto", tmp_path / "weights"))
    images = samples.images.images(range(12))
    assert samples.inception.shape == (12, 2048)
    assert samples.dinov2.equal(images[:, :, 0, 0] / 2)
