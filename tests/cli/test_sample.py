"""`fractal sample`."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fractal_model.cli.app import app
from fractal_model.cli.options import find_outputs
from fractal_model.cli.sampling_options import load_served
from fractal_model.common.errors import FractalError
from fractal_model.config.params import load_params
from fractal_model.config.params_source import DEFAULT_SOURCE, ParamsSource
from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.serving import ServingConfig
from fractal_model.model.fractal import Guide
from fractal_model.sampling.sampler import Sampler
from tests.support import tiny_model
from tests.support.tiny_files import save_tiny


def sample(workplace, *arguments):
    out = workplace.folder / "x.npz"
    workplace.run("sample", "--out", out, *arguments)
    with np.load(out) as arrays:
        return arrays["arr_0"], arrays["arr_1"].tolist()


def test_every_image_has_its_seed_and_class(workplace):
    settings = ("--guidance", 3, "--logit-scale", 1.2, "--iterations", "3,2", "--seed", 7)
    images, labels = sample(workplace, "--classes", "2,none", "--n", 3, *settings)
    assert labels == [2, 2, 2, -1, -1, -1]
    config = SamplingConfig(guidance=3, logit_scale=1.2, iterations=(3, 2))
    expected = Sampler(tiny_model("mar"), config)(torch.tensor(labels), range(7, 13))
    assert np.array_equal(images, expected.permute(0, 2, 3, 1).numpy())


def test_guidance_options_replace_the_settings(workplace):
    guide = tiny_model("mar", widths=(8, 8, 4))
    guide.save_pretrained(workplace.folder / "guide")
    options = ("--guidance-interval", "0.3,0.9", "--guidance-schedule", "constant")
    others = ("--order", "halton", "--guide", workplace.folder / "guide")
    images, labels = sample(workplace, "--classes", "1,2", "--n", 2, *options, *others)
    model = tiny_model("mar")
    model.guide = Guide(guide, "")
    config = SamplingConfig(
        guidance=2.0,
        logit_scale=1.1,
        iterations=(4, 4),
        guidance_interval=(0.3, 0.9),
        guidance_schedule="constant",
        order="halton",
        guide="guide",
    )
    expected = Sampler(model, config)(torch.tensor(labels), range(4))
    assert np.array_equal(images, expected.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize(
    ("option", "named"),
    [
        (("--guidance-interval", "0.3"), "guidance_interval"),
        (("--guidance-interval", "0.9,0.3"), "two numbers from 0 to 1, the lower one first"),
        (("--guidance-interval", "a,b"), "guidance interval 'a,b': expected two numbers"),
        (("--guide", "nowhere"), "guide nowhere: "),
    ],
)
def test_wrong_guidance_options_are_errors(workplace, option, named):
    with pytest.raises(FractalError, match=named):
        sample(workplace, *option)


def test_the_images_do_not_depend_on_the_batch_size(workplace):
    base, _ = sample(workplace, "--classes", "1,3", "--n", 5)
    split, _ = sample(workplace, "--classes", "1,3", "--n", 5, "--batch-size", 3)
    assert np.array_equal(base, split)


def test_the_defaults_are_no_class_and_the_size_s_settings(workplace):
    images, labels = sample(workplace)
    assert labels == [-1] * 16
    config = SamplingConfig(guidance=2.0, logit_scale=1.1, iterations=(4, 4))
    expected = Sampler(tiny_model("mar"), config)(torch.tensor(labels), range(16))
    assert np.array_equal(images, expected.permute(0, 2, 3, 1).numpy())


def test_classes_can_be_given_by_name(workplace, tmp_path):
    model = tiny_model("mar")
    model.config = model.config.model_copy(update={"class_names": ("cat", "dog", "cow", "ant")})
    from fractal_model.checkpoints.checkpoint import Progress, save_checkpoint

    progress = Progress(size="digits", fingerprint="0" * 64, position=1, steps=1)
    save_checkpoint(tmp_path / "model", model=model, optimizer={}, progress=progress)
    _, labels = sample(workplace, "--model", tmp_path / "model", "--classes", "Dog,ant", "--n", 1)
    assert labels == [1, 3]


def test_a_model_of_no_size_needs_the_option_size(workplace, tmp_path):
    model = save_tiny(tmp_path / "model", "mar", widths=(32, 16, 8))
    with pytest.raises(FractalError, match="no size in params.yaml has the layers of this mod"):
        sample(workplace, "--model", model)
    images, _ = sample(workplace, "--model", model, "--size", "digits", "--n", 1)
    assert images.shape == (1, 4, 4, 3)


def test_a_model_s_own_settings_come_before_those_of_its_size(workplace, tmp_path):
    own = ServingConfig(weights="ema", sampling=SamplingConfig(guidance=4.0, iterations=(1, 3)))
    model = save_tiny(tmp_path / "model", averages=["ema-0.9"], serving=own)
    averaged = tiny_model("mar", sharpen=2.0)
    size = load_params(workplace.params).size("digits").sampling
    for network, source, options, settings in (
        (averaged, f"{model}", (), own.sampling),
        (tiny_model("mar"), f"{model}#model", (), own.sampling),
        (averaged, f"{model}", ("--size", "digits"), size),
    ):
        images, _ = sample(workplace, "--model", source, "--classes", "1", "--n", 2, *options)
        expected = Sampler(network, settings)(torch.tensor([1, 1]), range(2))
        assert np.array_equal(images, expected.permute(0, 2, 3, 1).numpy())
    workplace.run("sample", "--model", model, "--n", 1, "--out", tmp_path / "images")
    request = json.loads((tmp_path / "images" / "request.json").read_text())
    assert request["images"]["weights"] == "ema-0.9"


@pytest.mark.parametrize("text", ["sampling.digits.guidance=3", "models.digits.dropout=0.2"])
def test_a_set_value_that_a_model_with_own_settings_ignores_is_refused(workplace, tmp_path, text):
    own = ServingConfig(weights="model", sampling=SamplingConfig(iterations=(1, 3)))
    model = save_tiny(tmp_path / "model", serving=own)
    message = f"a value of {text.split('.')[0]} has no effect: name the size"
    with pytest.raises(FractalError, match=message) as raised:
        load_served(str(model), None, ParamsSource(workplace.params, (text,)))
    assert raised.value.setting == "size"


def test_a_settings_file_that_the_environment_names_must_exist(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert find_outputs(DEFAULT_SOURCE) is None
    monkeypatch.setenv("FRACTAL_PARAMS", "params.yaml")
    with pytest.raises(FractalError, match=r"params\.yaml is missing"):
        find_outputs(DEFAULT_SOURCE)


def test_a_model_without_settings_needs_params_yaml(workplace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["sample", "--model", str(workplace.model), "--out", "x.png"]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, FractalError) and done.exception.setting == "params"
    assert "has no sampling settings, and there is no params.yaml in" in str(done.exception)


def test_the_order_can_be_given_as_numbers(workplace):
    numbered, _ = sample(workplace, "--n", 2, "--order", "0,1, 2 3")
    raster, _ = sample(workplace, "--n", 2, "--order", "raster")
    assert np.array_equal(numbered, raster)


@pytest.mark.parametrize("name", ["x.png", "x.npz"])
def test_a_folder_is_no_output_file(workplace, tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(FractalError, match=f"{name} is a folder: give the name of a file"):
        sample(workplace, "--out", tmp_path / name)


def test_a_stopped_folder_is_completed(workplace, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "images"
    workplace.run("sample", "--out", whole, "--n", 4, "--seed", 3)
    workplace.run("sample", "--out", folder, "--n", 4, "--seed", 3)
    (folder / "1.png").unlink()
    kept = (folder / "2.png").stat().st_mtime_ns
    workplace.run("sample", "--out", folder, "--n", 4, "--seed", 3)
    assert (folder / "2.png").stat().st_mtime_ns == kept
    for number in range(4):
        completed, expected = ((f / f"{number}.png").read_bytes() for f in (folder, whole))
        assert completed == expected
    with pytest.raises(FractalError, match="images of another model, class, seed or setting"):
        workplace.run("sample", "--out", folder, "--n", 4, "--seed", 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--classes", "4"), r"class '4' is unknown: this model knows 0 … 3"),
        (("--guidance", "nan"), "guidance.*found nan; allowed: guidance 0 … 1000$"),
        (("--guidance", "inf"), "guidance.*found inf.*guidance 0 … 1000"),
        (("--guidance", -1), "guidance.*found -1.*guidance 0 … 1000"),
        (("--guidance", 1001), "guidance.*found 1001.*guidance 0 … 1000"),
        (("--logit-scale", 0), "logit_scale.*allowed: logit scale above 0, at most 1000$"),
        (("--logit-scale", 1e39), "logit_scale.*logit scale above 0, at most 1000"),
        (("--order", ""), "order '' is neither random, raster"),
        (("--order", "x" * 5000), "order 'xxx.*' is neither random, raster"),
        (("--order", "0,1,2"), "order does not fit: its length is 3"),
        (("--n", 0), "0 images asked for: give 1 … 1,000,000"),
        (("--n", 10**9), "1,000,000,000 images asked for: give 1 … 1,000,000"),
        (("--iterations", "0,4"), "iterations.*found 0.*1 or more for each level"),
        (("--iterations", "a"), "iterations: found 'a', expected whole numbers"),
        (("--iterations", "5,4"), "iterations is 5 .* give 1 … 4"),
        (("--iterations", "4"), "iterations: '4' has 1 number, expected 2"),
        (("--seed", -1), "seed -1 with 16 images .* 0 … 4294967280"),
        (("--seed", 2**32 - 5), "seed 4294967291 with 16 images .* 0 … 4294967280"),
        (("--size", "mar-9"), "size 'mar-9' is unknown, did you mean 'mar-"),
        (("--batch-size", 0), "batch size 0 is out of range"),
        (("--out", "x.jpg"), "ending '.jpg'"),
        (("--out", "/dev/null/x.png"), "cannot be made"),
        (("--out", "/proc/x.png"), "cannot be made or written to"),
        (("--workers", -1), "number of workers is -1: "),
        (("--classes", "٣"), "class '٣' is unknown"),
    ],
)
def test_a_wrong_option_is_refused(workplace, arguments, message):
    with pytest.raises(FractalError, match=message):
        sample(workplace, *arguments)
    assert not list(workplace.folder.glob(".*partial"))
