"""A model as a folder of safetensors and JSON: exact, strict, without network or pickle."""

from __future__ import annotations

import json
import pickle
import socket

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub.errors import HTTPError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fractal_model.checkpoints.checkpoint import Progress, save_checkpoint
from fractal_model.common.errors import FractalError
from fractal_model.model import pretrained
from fractal_model.model.fractal import FractalModel
from fractal_model.tracking.model_source import load_model
from tests.support import tiny_model


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments):
        raise AssertionError(f"the test tried to connect to {arguments[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def exported(tmp_path):
    folder = tmp_path / "exported"
    tiny_model("guided").save_pretrained(folder)
    return folder


def test_a_saved_model_is_loaded_bit_identical(kind, tmp_path):
    model = tiny_model(kind)
    model.save_pretrained(tmp_path / "m")
    loaded = FractalModel.from_pretrained(tmp_path / "m")
    weights = model.state_dict()
    assert loaded.config == model.config
    assert loaded.state_dict().keys() == weights.keys()
    assert all(tensor.equal(weights[name]) for name, tensor in loaded.state_dict().items())
    assert not loaded.training


def test_the_folder_is_what_the_hub_expects(exported):
    with safe_open(exported / "model.safetensors", "pt") as weights:
        assert weights.metadata() == {"format": "pt"}
    assert json.loads((exported / "config.json").read_text())["num_classes"] == 4
    card = (exported / "README.md").read_text()
    assert card.startswith("---\n")
    assert "library_name: fractal-model" in card


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor.double().fill_(1e300), "not finite in float32"),
        (lambda tensor: tensor.fill_(torch.nan), "not finite in float32"),
        (lambda tensor: tensor.to(torch.int32), "holds torch.int32, expected floating-point"),
    ],
)
def test_weights_that_float32_cannot_hold_are_an_error(exported, change, message):
    weights = load_file(exported / "model.safetensors")
    name = next(iter(weights))
    save_file(weights | {name: change(weights[name])}, exported / "model.safetensors")
    with pytest.raises(FractalError, match=f"{name} holds .*{message}|{message}"):
        FractalModel.from_pretrained(exported)


def test_weights_of_lower_precision_become_float32(exported):
    weights = load_file(exported / "model.safetensors")
    half = {name: tensor.half() for name, tensor in weights.items()}
    save_file(half, exported / "model.safetensors")
    loaded = FractalModel.from_pretrained(exported).state_dict()
    assert all(loaded[name].equal(half[name].float()) for name in half)


def _change_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def _replace_by_pickle(folder):
    """Write the same weights as a pickle, which must not be read."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")


def _truncate(file, part):
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * part)])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "lacks config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "lacks model.safetensors"),
        (_replace_by_pickle, "lacks model.safetensors"),
        (lambda f: _truncate(f / "config.json", 0.5), "config.json is not .* truncated"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json is not"),
        (lambda f: (f / "config.json").write_text("[1]"), "config.json is not"),
        (lambda f: _change_json(f / "config.json", colour=1), "unknown key 'colour'"),
        (lambda f: _change_json(f / "config.json", num_clases=4), "did you mean 'num_classes'"),
        (lambda f: _change_json(f / "config.json", num_classes=0), "num_classes: .* found 0"),
        (lambda f: _change_json(f / "config.json", num_classes=5), "class_embedding.weight"),
        (lambda f: (f / "serving.json").write_text("{"), "serving.json is not the sampling sett"),
        (lambda f: (f / "serving.json").write_text('{"guidance": 1}'), "unknown key 'guidance'"),
        (lambda f: _truncate(f / "model.safetensors", 0.5), "damaged or truncated"),
        (lambda f: _truncate(f / "model.safetensors", 0), "damaged or truncated"),
        (lambda f: _change_weights(f, lambda w: w.pop("null_embedding")), "1 missing"),
        (lambda f: _change_weights(f, lambda w: w.update(x=torch.ones(1))), r"1 extra \(x\)"),
    ],
)
def test_a_damaged_folder_is_explained_on_one_line(exported, tmp_path, damage, message):
    damage(exported)
    for load in (FractalModel.from_pretrained, lambda f: load_model(str(f), tmp_path)):
        with pytest.raises(FractalError, match=message) as raised:
            load(exported)
        assert "\n" not in str(raised.value)


def test_weights_are_compared_before_the_model_needs_memory(exported, monkeypatch):
    build = FractalModel.__init__

    def build_without_memory(self, config):
        assert torch.get_default_device().type == "meta"
        build(self, config)

    monkeypatch.setattr(FractalModel, "__init__", build_without_memory)
    _change_json(exported / "config.json", num_classes=1_000_000)
    with pytest.raises(FractalError, match=r"class_embedding.weight .* instead of \[1000000, "):
        FractalModel.from_pretrained(exported)


@pytest.mark.parametrize("name", ["/nowhere/at/all", "no such folder"])
def test_a_missing_folder_is_named(name):
    with pytest.raises(FractalError, match=f"no folder {name}") as raised:
        FractalModel.from_pretrained(name)
    assert "\n" not in str(raised.value)


def test_an_unreachable_repository_is_named(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FractalError, match="no folder someone/model") as raised:
        FractalModel.from_pretrained("someone/model")
    assert "\n" not in str(raised.value)


def test_a_broken_connection_is_named(monkeypatch):
    def fail(*_, **__):
        raise HTTPError("no route to host")

    monkeypatch.setattr(pretrained, "snapshot_download", fail)
    with pytest.raises(FractalError, match=r"no folder someone/model.*no route to host") as raised:
        FractalModel.from_pretrained("someone/model")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("remaining", ["progress.json", "checksums.json", "optimizer.pt"])
def test_an_interrupted_checkpoint_is_not_taken_for_an_exported_model(tmp_path, remaining):
    folder = tmp_path / "c"
    progress = Progress(size="t", fingerprint="", position=0, steps=0)
    save_checkpoint(folder, model=tiny_model("mar"), optimizer={}, progress=progress)
    for name in {"progress.json", "checksums.json", "optimizer.pt", "COMPLETE"} - {remaining}:
        (folder / name).unlink()
    with pytest.raises(FractalError, match="COMPLETE"):
        load_model(str(folder), tmp_path)


def test_a_model_can_be_pickled_for_another_process():
    model = tiny_model("mar")
    copy = pickle.loads(pickle.dumps(model))
    assert copy.config == model.config
