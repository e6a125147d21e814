"""The page of an evaluation: its contents, and that it needs no other file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from fractal_model.common.errors import FractalError
from fractal_model.data.prepared import open_prepared
from fractal_model.data.writing import write_prepared
from fractal_model.metrics.distances import precision_recall
from fractal_model.metrics.reference import OWN_IMAGES, Reference, choose_images
from fractal_model.metrics.statistics import FeatureStatistics
from fractal_model.reporting import figures
from fractal_model.reporting.evaluation_page import (
    class_overview,
    distinct_names,
    flatten,
    headlines,
    write_report,
)
from fractal_model.reporting.neighbours import (
    RealImages,
    find_nearest,
    is_inside_manifold,
    measure_memorisation,
    reference_images,
    share_by_class,
)
from fractal_model.reporting.published_results import published_optimum
from tests.support import random_images
from tests.support.chromium import needs_chromium, page_html
from tests.support.outside_texts import NAMES as OUTSIDE
from tests.support.outside_texts import controls

NAMES = ("cat", "<b>dog</b>", "cat")


@dataclass
class Images:
    """A `SampleSet` in memory."""

    all: torch.Tensor
    labels: torch.Tensor
    side: int = 8

    def images(self, numbers: Sequence[int]) -> torch.Tensor:
        return self.all[list(numbers)]


def normal(count: int, width: int = 6, *, seed: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def real_images(count: int = 40, *, of: int | None = None) -> RealImages:
    images, labels = random_images(count, seed=3), torch.arange(count) % 3
    return RealImages(
        normal(count, seed=1), labels, lambda numbers: images[list(numbers)], of or count
    )


def test_there_are_no_figures_by_class_if_the_classes_differ(page):
    html = page(class_mismatch="the classes are others").read_text()
    assert "There are no figures by class: the classes are others." in html
    assert "Precision of each class" not in html and "nearest training images" in html
    assert "Precision of each class" in page().read_text()


@pytest.fixture
def page(tmp_path):
    def write(**changes: object):
        arguments = {
            "title": "fractal-digits version 7 & more",
            "record": {"protocol": {"dataset": "digits", "iterations": [16, 4]}, "version": "7"},
            "values": {"fid": 35.4554, "fid_stderr": 0.62, "precision": 0.5833},
            "absent": {"inception_score": "the weights have no classifier"},
            "samples": Images(random_images(12), torch.arange(12) % 3),
            "class_names": NAMES,
            "features": normal(12, seed=2),
            "real": real_images(),
            "held_out_bits": normal(30, 1, seed=4)[:, 0] * 0.1 + 0.74,
            "level_bits": {"pixels": 0.7, "guides of 4 px": 0.04},
            "curves": {"loss": [(0.5, 3.0), (1.0, 2.0)]},
        }
        write_report(tmp_path / "report.html", **arguments | changes)
        return tmp_path / "report.html"

    return write


def test_everything_is_on_the_page(page):
    text = page().read_text()
    for expected in ("35.46", "± 0.62", "0.5833", "no classifier", "protocol.iterations", "16, 4"):
        assert expected in text
    assert "cat (0)" in text and "cat (2)" in text
    assert text.count("<img") == 3 + 8 and text.count("<svg") == 6
    assert all("alt=" in image for image in re.findall("<img[^>]*>", text))


def test_the_page_needs_no_other_file_and_escapes_names(page):
    text = page().read_text()
    assert "<script" not in text and "<b>dog" not in text and "&lt;b&gt;dog" in text
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]*)""", text)
    assert addresses and all(a.startswith(("data:image/png", "#")) for a in addresses)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_cannot_control_the_page_or_its_figures(page, name):
    secret = {"storage": "s3://KEY:s3cret@bucket"}
    text = page(class_names=(name, "cat", name), title=name, record=secret, absent={"fid": name})
    text = text.read_text()
    assert controls(text) == [] and "s3cret" not in text and "s3://***@bucket" in text
    assert "x" * 3000 not in text


def test_the_page_says_which_share_of_the_training_images_is_searched(page):
    whole = " ".join(page().read_text().split())
    assert "40 of 40 training images, 100 %" in whole and "at least 100 %" in whole
    assert "another image would not" not in whole and "too small to rule copies" not in whole
    part = " ".join(page(real=real_images(of=5000)).read_text().split())
    assert "40 of 5,000 training images, 0.8 %" in part and "at least 0.8 %" in part
    assert "another image would not" in part and "too small to rule copies out" in part


def test_the_page_names_the_images_that_samples_are_compared_with(page):
    assert "with (training images, to the nearest other one)" in " ".join(
        page().read_text().split()
    )
    text = page(held_out_features=normal(20, seed=12)).read_text()
    assert "with (validation images)" in " ".join(text.split())


def test_a_section_without_values_is_left_out(page):
    text = page(real=None, features=None, held_out_bits=None, level_bits=None, curves={})
    text = text.read_text()
    assert "Not shown: the images of the reference" in text and "<svg" not in text


def test_a_few_of_many_classes_are_shown(page):
    names = [f"class {i}" for i in range(50)]
    labels = torch.arange(50)
    samples = Images(random_images(50), labels)
    text = page(samples=samples, class_names=names, real=None).read_text()
    assert "20 of 50 classes" in text and text.count("<img") == 20
    assert "1 sample of class class 49" in text


def test_a_thousand_classes_make_a_picture_of_a_few():
    labels = torch.arange(1000).repeat_interleave(12)
    grey = torch.full((len(labels), 3, 8, 8), 128, dtype=torch.uint8)
    picture = class_overview(Images(grey, labels))
    assert picture.shape == (3, 20 * 66 + 2, 10 * 66 + 2)


def test_features_that_are_not_finite_are_refused(page):
    with pytest.raises(FractalError, match="features of the samples: found NaN"):
        page(features=torch.full((12, 6), float("nan")))


@needs_chromium
@pytest.mark.parametrize("size", ["1100,3000", "390,3000"])
def test_a_browser_shows_the_page(page, tmp_path, size):
    picture = tmp_path / "page.png"
    html = page_html(page().as_uri(), picture=picture, size=size, wait_ms=2000)
    assert "35.46" in html and "fractal-digits version 7 &amp; more" in html
    assert picture.stat().st_size > 20_000


def test_the_nearest_images_are_exact_and_in_order():
    queries, real = normal(9, seed=5), normal(17, seed=6)
    distances, numbers = find_nearest(queries, real, k=3)
    expected = (queries[:, None].double() - real.double()).square().sum(-1).sqrt().sort(dim=1)
    torch.testing.assert_close(distances, expected.values[:, :3])
    assert numbers.equal(expected.indices[:, :3])
    to_others, _ = find_nearest(real, real, themselves=True)
    assert (to_others > 0.1).all()


def test_copies_are_unusually_near_and_new_images_are_not():
    real = real_images(200)
    of_copies, _ = find_nearest(real.features[:50] + 1e-3, real.features)
    of_new, _ = find_nearest(normal(400, seed=8), real.features)
    held_out = normal(400, seed=9)
    assert measure_memorisation(of_copies[:, 0], real, held_out).unusually_near == 1.0
    assert measure_memorisation(of_copies[:, 0], real).unusually_near == 1.0
    assert measure_memorisation(of_new[:, 0], real, held_out).unusually_near < 0.05


def test_the_mean_precision_of_the_classes_is_the_precision():
    samples, real = normal(60, seed=10) + 0.8, normal(80, seed=11)
    labels = torch.arange(60) % 3
    by_class = share_by_class(is_inside_manifold(samples, real), labels, ["a", "b", "c"])
    precision, _ = precision_recall(samples, real)
    assert 0.05 < precision < 0.95
    assert sum(by_class.values()) / 3 == pytest.approx(precision, abs=1e-6)


def test_the_pictures_of_the_reference_are_the_images_behind_its_features(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
    write_prepared(
        tmp_path / "noise",
        dataset="noise",
        source="",
        preprocessing="none",
        resolution=4,
        class_names=["a", "b"],
        splits={"train": [(image, i % 2) for i, image in enumerate(images)]},
    )
    split = open_prepared(tmp_path / "noise", "train")
    indices = choose_images(split, 10)
    features = torch.from_numpy(images[indices].reshape(10, -1)).float()
    statistics = FeatureStatistics(np.zeros(48), np.eye(48), 30)
    reference = Reference(statistics, features, OWN_IMAGES, "noise", "0", "0")
    real = reference_images(split, reference)
    pictures = real.pictures([4, 1])
    assert pictures.permute(0, 2, 3, 1).flatten(1).float().equal(features[[4, 1]])
    assert real.labels.tolist() == [int(index) % 2 for index in indices]
    assert real.searched_share == pytest.approx(1 / 3)
    published = Reference(statistics, features, "ADM: x.npz", "noise", "0", "0")
    assert reference_images(split, published) is None


def test_names_records_and_metrics_become_texts():
    assert distinct_names(NAMES) == ["cat (0)", "<b>dog</b>", "cat (2)"]
    assert flatten({"a": {"b": None, "c": ()}}) == {"a.b": "none", "a.c": "none"}
    metrics = headlines({"fid_5k": 4.56789, "fid_5k_stderr": 0.0123, "recall": 0.5})
    assert [(metric.name, metric.value, metric.error) for metric in metrics] == [
        ("fid_5k", "4.568", "0.012"),
        ("recall", "0.5", ""),
    ]


def test_fid_against_guidance_shows_the_published_optimum():
    points = {1.0: [(11.0, 9.0), (21.0, 8.0)], 1.1: [(21.0, 7.5), (31.0, 8.5)]}
    figure = figures.guidance_sweep(points, published=published_optimum("mar-l"))
    text = figures.svg(figure)
    for expected in ("logit scale 1.1", "FractalMAR-L, published", "guidance", "currentColor"):
        assert expected in text
    star = figure.axes[0].lines[-1]
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (21.0, 7.3)


def test_many_classes_become_a_histogram():
    few = figures.bars({f"c${i}": i / 10 for i in range(5)}, "precision")
    many = figures.bars({f"c{i}": i / 100 for i in range(100)}, "precision")
    assert [t.get_text() for t in few.axes[0].get_yticklabels()][1] == r"c\$1"
    assert many.axes[0].get_ylabel() == "classes"
