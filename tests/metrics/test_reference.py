"""References: statistics of all images or ADM's, when a file is made again, what is refused."""

import gc
import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fractal_model.common.errors import FractalError
from fractal_model.data.prepared import PreparedSplit, open_prepared
from fractal_model.data.writing import write_prepared
from fractal_model.metrics.adm_statistics import conflicting_resolution, load_published
from fractal_model.metrics.image_metrics import image_metrics
from fractal_model.metrics.reference import (
    FORMAT_VERSION,
    PublishedStatistics,
    build_reference,
    load_reference,
)
from fractal_model.metrics.statistics import FeatureStatistics, RunningStatistics


class Pixels:
    """A fast stand-in for Inception."""

    weights_source, weights_checksum = "pixels", "sha256:0"
    FEATURES_VERSION = 1

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :12].float()


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> PreparedSplit:
    folder = tmp_path_factory.mktemp("data") / "noise"
    images = np.random.default_rng(0).integers(0, 256, (130, 4, 4, 3), dtype=np.uint8)
    write_prepared(
        folder,
        dataset="noise",
        source="",
        preprocessing="none",
        resolution=4,
        class_names=["a"],
        splits={"train": [(image, 0) for image in images]},
    )
    return open_prepared(folder, "train")


def test_statistics_of_batches_equal_numpys():
    features = torch.randn(301, 7, generator=torch.Generator().manual_seed(0)) + 1000
    running = RunningStatistics()
    for batch in features.split(50):
        running.add(batch)
    statistics, whole = running.statistics(), features.double().numpy()
    assert statistics.count == 301
    np.testing.assert_allclose(statistics.mean, whole.mean(axis=0), rtol=1e-12)
    covariance = np.cov(whole, rowvar=False)
    np.testing.assert_allclose(statistics.covariance, covariance, rtol=1e-9, atol=1e-9)


def test_statistics_of_one_image_are_refused():
    running = RunningStatistics()
    running.add(torch.ones(1, 3))
    with pytest.raises(FractalError, match="found 1 images, expected 2"):
        running.statistics()


def test_a_reference_has_statistics_of_all_images_and_features_of_a_sample(split, tmp_path):
    done = []
    reference = build_reference(
        split, Pixels(), tmp_path / "r.npz", images=130, sample=60, progress=done.append
    )
    features = Pixels()(split.load_all()[0]).double().numpy()
    np.testing.assert_allclose(reference.statistics.mean, features.mean(axis=0), rtol=1e-12)
    expected = np.cov(features, rowvar=False)
    np.testing.assert_allclose(reference.statistics.covariance, expected, rtol=1e-9)
    assert reference.features.shape == (60, 12) and done == [0, 50, 100, 130]
    rows = {tuple(row) for row in features.tolist()}
    assert {tuple(row) for row in reference.features.tolist()} <= rows
    again = load_reference(tmp_path / "r.npz")
    assert again.checksum == reference.checksum
    with np.load(tmp_path / "r.npz") as content:
        assert str(content["preprocessing"]) == "none" and int(content["count"]) == 130


def test_more_images_than_the_split_has_are_refused(split, tmp_path):
    with pytest.raises(FractalError, match="statistics_images is 131 for noise, which has 130"):
        build_reference(split, Pixels(), tmp_path / "r.npz", images=131, sample=5)


def test_only_fid_uses_the_statistics_of_all_images():
    generator = torch.Generator().manual_seed(0)
    generated, real = (torch.randn(60, 5, generator=generator) for _ in range(2))
    other = FeatureStatistics.from_features(torch.randn(60, 5, generator=generator) + 3)
    without = image_metrics(generated, real, kid_subset_size=20, kid_subsets=3)
    results = image_metrics(
        generated, real, real_statistics=other, kid_subset_size=20, kid_subsets=3
    )
    assert results.values["fid"] > without.values["fid"] + 10
    for name in ("kid", "precision", "recall"):
        assert results.values[name] == without.values[name]


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_a_damaged_reference_is_refused(tmp_path, content):
    (tmp_path / "r.npz").write_bytes(content)
    with pytest.raises(FractalError, match="r.npz cannot be used.*dvc repro"):
        load_reference(tmp_path / "r.npz")


@pytest.mark.parametrize("name", ["mean", "covariance", "features"])
def test_a_reference_with_numbers_that_are_not_finite_is_refused(tmp_path, name):
    numbers = {"mean": np.zeros(3), "covariance": np.eye(3), "features": np.zeros((2, 3))}
    numbers[name] = numbers[name] * np.nan
    np.savez(tmp_path / "r.npz", format_version=FORMAT_VERSION, **numbers)
    with pytest.raises(FractalError, match=f"NaN or infinite numbers in {name}.: run `dvc repro`"):
        load_reference(tmp_path / "r.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": np.zeros(4)}, "mean .4,., covariance .3, 3., features .2, 3. do not fit"),
        ({"features": np.zeros((0, 3))}, "features .0, 3. do not fit"),
        ({"features": np.zeros((2, 3), complex)}, "features holds complex128"),
    ],
)
def test_a_reference_whose_arrays_do_not_fit_together_is_refused(tmp_path, changes, message):
    numbers = {"mean": np.zeros(3), "covariance": np.eye(3), "features": np.zeros((2, 3))}
    np.savez(tmp_path / "r.npz", format_version=FORMAT_VERSION, **numbers | changes)
    with pytest.raises(FractalError, match=f"{message}.*: run `dvc repro`"):
        load_reference(tmp_path / "r.npz")


def test_a_missing_reference_or_one_of_an_older_version_is_refused(tmp_path):
    np.savez(tmp_path / "r.npz", format_version=1)
    with pytest.raises(FractalError, match=r"format version 1, expected .*: run `dvc repro`"):
        load_reference(tmp_path / "r.npz")
    with pytest.raises(FractalError, match="are missing: run `dvc repro`"):
        load_reference(tmp_path / "no.npz")


def statistics(**changes: object) -> dict[str, object]:
    return {"mu": np.zeros(2048), "sigma": np.eye(2048)} | changes


def test_statistics_and_images_of_adms_files_are_read(tmp_path):
    np.savez(tmp_path / "adm_in64_stats.npz", **statistics())
    published = load_published(tmp_path / "adm_in64_stats.npz", 64)
    assert published.images is None and published.source == "ADM: adm_in64_stats.npz"
    images = np.zeros((3, 64, 64, 3), np.uint8)
    images[1, 2, 3] = (5, 6, 7)
    np.savez(tmp_path / "v.npz", **statistics(arr_0=images, mu_s=np.zeros(2)))
    images = load_published(tmp_path / "v.npz", 64).images
    assert images.shape == (3, 3, 64, 64) and images[1, :, 2, 3].tolist() == [5, 6, 7]


def identity_with(row: int, column: int, value: float) -> np.ndarray:
    sigma = np.eye(2048)
    sigma[row, column] = value
    return sigma


def test_float32_statistics_become_float64(tmp_path):
    mean = np.full(2048, 0.1, np.float32)
    np.savez(tmp_path / "x.npz", **statistics(mu=mean, sigma=np.eye(2048, dtype=np.float16)))
    published = load_published(tmp_path / "x.npz", 64)
    assert published.mean.dtype == published.covariance.dtype == np.float64
    assert published.mean[0] == float(np.float32(0.1)) and np.trace(published.covariance) == 2048


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(2048)}, "is not ADM's reference file: it has 'mu'; expected"),
        (statistics(mu=np.zeros(64)), r"mu has shape \(64,\), sigma \(2048, 2048\)"),
        (statistics(sigma=np.eye(3)), r"sigma \(3, 3\)"),
        (statistics(mu=np.full(2048, np.nan)), "NaN or infinite"),
        (statistics(sigma=identity_with(0, 1, 0.1)), "not symmetric"),
        (statistics(sigma=identity_with(0, 0, -9.0)), "negative eigenvalues"),
        (statistics(sigma=-np.eye(2048)), "sigma has the trace -2.05e"),
        (statistics(sigma=np.zeros((2048, 2048))), "sigma has the trace 0"),
        (statistics(sigma=np.eye(2048) * 50_000), "sigma has the trace 1.02e.08"),
        (statistics(mu=np.full(2048, 25_000.0)), "mu reaches from 2.5e.04 to 2.5e.04"),
        (statistics(mu=np.full(2048, -0.5)), "mu reaches from -0.5"),
        (statistics(mu=np.full(2048, 1 + 1j)), "mu holds complex128, not real floating-point"),
        (statistics(mu=np.full(2048, "1.5")), "mu holds <U3, not real"),
        (statistics(sigma=np.eye(2048, dtype=np.int64)), "sigma holds int64, not real"),
        (statistics(arr_0=np.zeros((0, 64, 64, 3), np.uint8)), "arr_0 holds no images"),
        (statistics(arr_0=np.uint8(0)), "of the same resolution"),
        (statistics(arr_0=np.zeros((2, 32, 32, 3), np.uint8)), "of the same resolution"),
        (statistics(arr_0=np.zeros((2, 64, 64, 3), np.float32)), "images float32"),
        ({"mu": np.array([len], dtype=object), "sigma": np.eye(2048)}, "cannot be read .*pickle"),
    ],
)
def test_a_file_that_is_not_adms_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    require_refused(tmp_path / "x.npz", message)


def test_damaged_files_of_adm_are_refused(tmp_path):
    require_refused(tmp_path / "no.npz", "is missing: give ADM's reference file")
    whole = io.BytesIO()
    np.savez(whole, **statistics())
    for content in (b"", b"text", whole.getvalue()[:100_000]):
        (tmp_path / "x.npz").write_bytes(content)
        require_refused(tmp_path / "x.npz", "cannot be read .*fetch ADM's reference file again")
        gc.collect()  # warns about a file that is still open
    single = io.BytesIO()
    np.save(single, np.zeros(2048))
    (tmp_path / "x.npz").write_bytes(single.getvalue())
    require_refused(tmp_path / "x.npz", "cannot be read .it is one array, not an npz.: fetch")


@pytest.mark.parametrize("shape", ["(1000000, 1000000)", "(9999999999999999999999,)", "(-1, 2)"])
def test_an_array_that_claims_a_huge_shape_takes_no_memory(tmp_path, shape):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}".encode()
    array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("mu.npy", array)
        archive.writestr("sigma.npy", array)
    require_refused(tmp_path / "x.npz", "(mu|sigma) is float64 .* larger than .* bytes")
    with zipfile.ZipFile(tmp_path / "r.npz", "w") as archive:
        archive.writestr("mean.npy", array)
    with pytest.raises(FractalError, match="mean is float64 .* bytes.: run `dvc repro`"):
        load_reference(tmp_path / "r.npz")


def test_an_array_that_unpacks_to_too_many_bytes_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mu.npy", bytes(10_000_000))
    require_refused(tmp_path / "x.npz", "mu unpacks to 10,000,000 bytes")


@pytest.mark.parametrize(
    ("name", "resolution"),
    [
        ("adm_in64_stats.npz", 64),
        ("VIRTUAL_imagenet256_labeled.npz", None),
        ("statistics-2021.npz", None),
        ("in64-to-256.npz", None),
    ],
)
def test_a_conflicting_resolution_is_read_from_the_name(name, resolution):
    assert conflicting_resolution(Path(name), 256) == resolution


def require_refused(file, message: str) -> None:
    with pytest.raises(FractalError, match=message) as raised:
        load_published(file, 64)
    assert "\n" not in str(raised.value)


class CountingPixels(Pixels):
    """A network that counts down its batches and is interrupted at 0, as if it were killed."""

    def __init__(self, batches: int = 1000) -> None:
        self.batches = batches

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if not self.batches:
            raise KeyboardInterrupt
        self.batches -= 1
        return super().__call__(images)


def build(split, file, inception, images=130, sample=60, **options):
    return build_reference(split, inception, file, images=images, sample=sample, **options)


def test_a_killed_run_continues_to_the_same_bytes(split, tmp_path, monkeypatch):
    monkeypatch.setattr("fractal_model.metrics.reference._SAVE_SECONDS", 0)
    whole, file = tmp_path / "whole.npz", tmp_path / "r.npz"
    build(split, whole, Pixels())
    with pytest.raises(KeyboardInterrupt):
        build(split, file, CountingPixels(2))
    assert not file.exists()
    inception, done = CountingPixels(), []
    build(split, file, inception, progress=done.append)
    assert done == [100, 130] and inception.batches == 999, "only the last batch was left"
    assert file.read_bytes() == whole.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"r.npz", "whole.npz"}


@pytest.mark.parametrize("damage", [True, False])
def test_sums_that_are_damaged_or_of_other_inputs_are_not_used(
    split, tmp_path, monkeypatch, damage
):
    monkeypatch.setattr("fractal_model.metrics.reference._SAVE_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        build(split, tmp_path / "r.npz", CountingPixels(2))
    if damage:
        sums = tmp_path / ".r.npz.sums.npz"
        content = bytearray(sums.read_bytes())
        content[len(content) // 2] ^= 255
        sums.write_bytes(content)
    inception = CountingPixels()
    build(split, tmp_path / "r.npz", inception, sample=60 if damage else 61)
    assert inception.batches == 997


def test_a_reference_is_kept_only_if_its_inputs_are_equal_and_it_is_undamaged(split, tmp_path):
    file = tmp_path / "r.npz"
    build(split, file, Pixels())
    before, inception = file.stat().st_mtime_ns, CountingPixels()
    build(split, file, inception)
    assert inception.batches == 1000 and file.stat().st_mtime_ns == before
    build(split, file, inception, images=129)
    assert inception.batches == 997
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    build(split, file, inception, images=129)
    assert inception.batches == 994, "a damaged reference is built again"


def rewrite_by_the_old_rule(file) -> None:
    """Replace `made_from` by a checksum over source code, as the first versions wrote it."""
    with np.load(file) as content:
        arrays = dict(content)
    np.savez(file, **arrays | {"made_from": "0" * 64})


def test_a_reference_of_the_old_rule_is_kept_if_everything_else_in_it_agrees(split, tmp_path):
    file, inception = tmp_path / "r.npz", CountingPixels()
    build(split, file, Pixels())
    rewrite_by_the_old_rule(file)
    before = file.read_bytes()
    build(split, file, inception)
    assert inception.batches == 1000 and file.read_bytes() == before


class OtherWeights(CountingPixels):
    weights_checksum = "sha256:1"


class OtherFeatures(CountingPixels):
    FEATURES_VERSION = 2


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize(
    ("network", "changes"),
    [
        (CountingPixels, {"images": 129}),
        (CountingPixels, {"sample": 59}),
        (OtherWeights, {}),
        (OtherFeatures, {}),
    ],
)
def test_a_reference_of_other_inputs_is_made_again(split, tmp_path, old, network, changes):
    file, inception = tmp_path / "r.npz", network()
    build(split, file, Pixels())
    if old:
        rewrite_by_the_old_rule(file)
    build(split, file, inception, **changes)
    assert inception.batches == 997


def test_another_version_of_the_statistics_makes_a_reference_again(split, tmp_path, monkeypatch):
    build(split, tmp_path / "r.npz", Pixels())
    monkeypatch.setattr("fractal_model.metrics.reference.STATISTICS_VERSION", 2)
    inception = CountingPixels()
    build(split, tmp_path / "r.npz", inception)
    assert inception.batches == 997


@pytest.mark.parametrize("old", [True, False])
def test_a_reference_of_other_published_statistics_is_made_again(split, tmp_path, old):
    file = tmp_path / "r.npz"
    one = PublishedStatistics("ADM: x.npz", np.zeros(12), np.eye(12), None)
    build(split, file, Pixels(), published=one)
    if old:
        rewrite_by_the_old_rule(file)
    for published, batches in (
        (one, 1000),
        (replace(one, mean=np.ones(12)), 998),
        (replace(one, mean=np.ones(12), images=torch.ones(70, 3, 4, 4, dtype=torch.uint8)), 998),
        (None, 997),
    ):
        inception = CountingPixels()
        reference = build(split, file, inception, published=published)
        assert inception.batches == batches
        assert reference.statistics.count == (130 if published is None else 0)
