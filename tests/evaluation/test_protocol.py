"""The protocol: what it depends on, how metrics of previews are named, what is refused."""

from __future__ import annotations

import pytest

from fractal_model.common.errors import FractalError
from fractal_model.common.hardware import Hardware
from fractal_model.config.sampling import SamplingConfig
from fractal_model.evaluation.protocol import Record, make_protocol, read_record
from fractal_model.metrics.names import short_count
from fractal_model.metrics.reference import OWN_IMAGES
from tests.support.protocols import SETTINGS, manifest, protocol, reference


def test_the_fingerprint_depends_on_what_decides_the_metrics_and_nothing_else():
    base = protocol()
    assert base.fingerprint == protocol().fingerprint
    for name, value in {"batch_size": 99, "workers": 2}.items():
        assert protocol(SETTINGS.model_copy(update={name: value})).fingerprint == base.fingerprint
    others = [
        protocol(preview=True),
        protocol(sampling=SamplingConfig(guidance=2.0)),
        protocol(sampling=SamplingConfig(guidance_interval=(0.2, 0.8))),
        protocol(sampling=SamplingConfig(guidance_schedule="constant")),
        protocol(sampling=SamplingConfig(order="halton")),
        protocol(sampling=SamplingConfig(guide="sha256:1")),
        protocol(sampling=None),
        protocol(dinov2_checksum="sha256:1"),
        protocol(source="ADM: x.npz", preview=True),
        protocol(of=manifest("others")),
    ]
    for name, value in {
        "seed": 1,
        "weights": "ema",
        "likelihood_passes": 3,
        "kid_subsets": 4,
    }.items():
        others.append(protocol(SETTINGS.model_copy(update={name: value})))
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == len(others) + 1


def test_published_settings_leave_no_trace_in_the_protocol():
    """So protocols from before there were others stay the same."""
    images = protocol(sampling=SamplingConfig()).images.model_dump(mode="json")
    assert images["guidance_schedule"] == "linear"
    assert not {"guidance_interval", "guidance_schedule", "guide"} & set(images["sampling"])
    constant = SamplingConfig(guidance_schedule="constant")
    assert protocol(sampling=constant).images.guidance_schedule == "constant"


def test_metrics_of_a_preview_have_its_count_in_their_names():
    full, preview = protocol(), protocol(preview=True)
    assert (full.samples, preview.samples) == (300, 50)
    assert full.label("fid_stderr") == "fid_stderr"
    assert preview.label("fid") == "fid_50"
    assert preview.label("fid_stderr") == "fid_50_stderr"
    assert preview.label("precision") == "precision_50"
    assert preview.label("nll_bits_per_dim_stderr") == "nll_bits_per_dim_stderr"
    assert preview.label("seconds_per_image") == "seconds_per_image"
    assert [short_count(n) for n in (300, 5000, 50_000, 1500)] == ["300", "5k", "50k", "1500"]


@pytest.mark.parametrize(
    ("dataset", "source"), [("imagenet64", OWN_IMAGES), ("noise", "ADM: adm_in64_stats.npz")]
)
def test_the_published_protocol_has_50000_samples(dataset, source):
    of = manifest(dataset)
    with pytest.raises(FractalError, match="makes 300 images .* has 50,000: set it to 5000"):
        protocol(of=of, source=source)
    many = SETTINGS.model_copy(update={"samples_per_class": 5000})
    assert not protocol(many, of=of, source=source).is_preview
    assert protocol(of=of, source=source, preview=True).label("fid") == "fid_50"


def test_a_reference_of_other_images_is_refused():
    with pytest.raises(FractalError, match="reference features of noise belong to another data"):
        make_protocol(
            SETTINGS,
            manifest(checksum="b" * 64),
            reference(manifest()),
            inception_checksum="sha1:1",
        )


def test_a_reference_of_another_network_is_refused():
    with pytest.raises(FractalError, match="reference features of noise belong to another network"):
        protocol(inception_checksum="sha1:2")


def test_a_record_survives_writing_and_reading(tmp_path):
    record = Record.now(
        protocol(), model="models:/fractal-digits/1", version="1", hardware=Hardware.here(2)
    )
    (tmp_path / "protocol.json").write_text(record.model_dump_json())
    assert read_record(tmp_path / "protocol.json") == record
    assert record.checksum == record.protocol.fingerprint
    assert {"fractal-model", "torch", "timm"} <= set(record.libraries)
    assert record.hardware.workers == 2


def test_a_missing_or_foreign_record_is_an_error(tmp_path):
    with pytest.raises(FractalError, match="no.json is missing: evaluate again"):
        read_record(tmp_path / "no.json")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(FractalError, match="another version .protocol: Field required"):
        read_record(tmp_path / "x.json")
