"""The card of an exported model, read by the hub's own classes. Whether the hub accepts it is asked
only when a model is pushed: its check needs the network."""

from __future__ import annotations

import pytest
import yaml
from huggingface_hub import ModelCard

from fractal_model.reporting.model_card import complete_card
from fractal_model.reporting.results_table import Row
from tests.support import tiny_model
from tests.support.evaluated_rows import imagenet, protocol

VALUES = {
    "fid": 35.46,
    "fid_stderr": 0.5,
    "nll_bits_per_dim": 0.7425,
    "nll_bits_per_dim_stderr": 0.0044,
    "kid": 0.01,
    "seconds_per_image": 0.2,
}


@pytest.fixture
def card(tmp_path):
    """A function that completes the card of a new exported folder and reads it."""

    def make(row: Row | None = None, picture=None, license="mit") -> ModelCard:
        tiny_model("mar").save_pretrained(tmp_path / "m")
        file = tmp_path / "m" / "README.md"
        complete_card(file, name="tiny", license=license, evaluation=row, picture=picture)
        return ModelCard.load(file)

    return make


def test_the_metadata_has_every_metric_with_error_protocol_and_data(card):
    row = Row("digits", "models:/fractal-digits/1", VALUES, protocol())
    read = card(row)
    assert read.data.model_name == "tiny"
    results = {result.metric_type: result for result in read.data.eval_results}
    assert list(results) == ["nll_bits_per_dim", "fid", "kid"]
    assert {name: result.metric_value for name, result in results.items()} == {
        name: VALUES[name] for name in results
    }
    fid = results["fid"]
    assert (fid.task_type, fid.dataset_type) == ("unconditional-image-generation", "digits")
    assert fid.dataset_args == {"checksum": "a" * 64, "resolution": 8}
    assert fid.metric_args["standard_error"] == 0.5
    assert fid.metric_args["protocol"] == row.protocol.fingerprint
    assert fid.metric_args["samples"] == 300
    assert fid.metric_args["sampling"]["guidance"] == 2.5
    assert "standard_error" not in results["kid"].metric_args


def test_the_metadata_is_plain_yaml_of_one_model_index_entry(card, tmp_path):
    card(Row("digits", "m", VALUES, protocol()))
    _, metadata, _ = (tmp_path / "m" / "README.md").read_text().split("---\n", 2)
    (entry,) = yaml.safe_load(metadata)["model-index"]
    (result,) = entry["results"]
    assert result["dataset"]["name"] == "digits"
    assert [metric["name"] for metric in result["metrics"]] == ["nll_bits_per_dim", "fid", "kid"]


def test_people_read_the_same_numbers_and_the_protocol(card):
    row = Row("imagenet64", "m", VALUES, imagenet())
    text = card(row).text
    assert "| `fid` | 35.4600 ± 0.5000 |" in text
    assert "| `kid` | 0.0100 |" in text
    assert "seconds_per_image" not in text
    assert "50,000 samples, 50 of each class, against ADM: adm_in64_stats.npz" in text
    assert "guidance 2.5" in text
    assert row.protocol.fingerprint in text


def test_a_model_without_evaluation_has_no_numbers(card):
    read = card(None)
    assert not read.data.eval_results
    assert "model-index" not in read.content
    assert "## Results" not in read.text


def test_the_first_card_is_kept_and_the_licence_added(card):
    read = card(license="cc-by-4.0")
    assert read.data.license == "cc-by-4.0"
    assert read.data.library_name == "fractal-model"
    assert read.data.pipeline_tag == "unconditional-image-generation"
    assert "from_pretrained(" in read.text
    assert "@article{li2025fractal" in read.text


def test_the_picture_lies_beside_the_card(card, tmp_path):
    picture = tmp_path / "my grid.png"
    picture.write_bytes(b"pixels")
    assert "![Samples of the model](samples.png)" in card(picture=picture).text
    assert (tmp_path / "m" / "samples.png").read_bytes() == b"pixels"


def test_without_a_picture_none_is_shown(card, tmp_path):
    assert "samples.png" not in card().text
    assert not (tmp_path / "m" / "samples.png").exists()
