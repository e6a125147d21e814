"""`fractal likelihood`."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from fractal_model.cli.app import app
from fractal_model.common.errors import FractalError
from fractal_model.data.prepared import open_prepared
from fractal_model.model.likelihood import mask_seeds, pass_bits
from tests.support import tiny_model
from tests.support.tiny_files import save_images, save_tiny


def values(workplace, *arguments):
    out = workplace.folder / "out.csv"
    workplace.run("likelihood", "--data", "tiny", "--passes", 3, "--out", out, *arguments)
    return pd.read_csv(out)


def test_the_mean_is_printed_and_each_image_s_value_is_written(workplace, tmp_path):
    out = tmp_path / "new" / "out.csv"
    printed = workplace.run(
        "likelihood", "--data", "tiny", "--passes", 3, "--seed", 5, "--out", out
    )
    table = pd.read_csv(out)
    images, labels = open_prepared(workplace.data, "validation").load_all()
    none = torch.full_like(labels, -1)
    expected = pass_bits(tiny_model("mar"), images, mask_seeds(5, range(11)), passes=3, labels=none)
    assert list(table) == ["index", "label", "bits_per_dim"]
    assert table["index"].tolist() == list(range(11))
    assert table["label"].tolist() == labels.tolist()
    assert table["bits_per_dim"].tolist() == expected.mean(1).tolist()
    assert f"{expected.mean():.4f} bits/dim ±" in printed
    assert "upper bound, Monte Carlo error of the masks at most about 0." in printed
    assert "3 passes, 11 images, seed 5" in printed


def test_the_result_depends_on_classes_and_seed_but_not_on_batches(workplace):
    base = values(workplace)
    assert base.equals(values(workplace, "--batch-size", 2))
    assert not base.equals(values(workplace, "--conditional"))
    assert not base.equals(values(workplace, "--seed", 1))


def test_an_autoregressive_model_is_exact(workplace, tmp_path):
    model = save_tiny(tmp_path / "model", "ar")
    printed = workplace.run("likelihood", "--data", workplace.data, "--model", model)
    assert "exact, 11 images" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--passes", 0), "passes 0.*1 … 10000"),
        (("--passes", 10**9), "passes 1000000000.*1 … 10000"),
        (("--batch-size", 0), "batch size 0.*1 or more"),
        (("--seed", -1), "seed -1.*0 … 4294967295"),
        (("--split", "test"), "no split 'test': choose one of validation"),
        (("--data", "none"), "none"),
        (("--model", "none"), "there is no model none: give the folder of a checkpoint"),
        (("--workers", -1), "number of workers is -1: give 1 or more"),
        (("--out", "/dev/null/x.csv"), "cannot be made"),
    ],
)
def test_a_wrong_option_is_refused(workplace, arguments, message):
    base = {"--data": "tiny"} | dict([arguments])
    with pytest.raises(FractalError, match=message):
        workplace.run("likelihood", *(word for pair in base.items() for word in pair))


def test_without_settings_the_data_is_a_folder(workplace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["likelihood", "--model", str(workplace.folder / "model"), "--passes", "1", "--data"]
    refused = CliRunner().invoke(app, [*words, "digits"])
    message = "digits is no folder here, and there is no params.yaml that knows data sets by name"
    assert message in str(refused.exception)
    assert CliRunner().invoke(app, [*words, str(workplace.data)]).exit_code == 0


def test_a_folder_is_no_output_file(workplace, tmp_path):
    with pytest.raises(FractalError, match="is a folder: give the name of a file"):
        workplace.run("likelihood", "--data", "tiny", "--out", tmp_path)


def test_images_of_another_resolution_are_refused(workplace, tmp_path):
    data = save_images(tmp_path / "other", size=8)
    with pytest.raises(FractalError, match="data set other has images of 8 px, the model of 4 px"):
        workplace.run("likelihood", "--data", data)


def test_other_classes_are_refused_only_with_conditional(workplace, tmp_path):
    data = save_images(tmp_path / "other", classes=3)
    assert "11 images" in workplace.run("likelihood", "--data", data, "--passes", 1)
    with pytest.raises(FractalError, match=r"other \(3\) are not the model's \(4"):
        workplace.run("likelihood", "--data", data, "--conditional")


def test_classes_with_other_names_are_other_classes(workplace, tmp_path):
    model = tiny_model("mar")
    names = ("cat", "dog", "cow", "ant")
    model.config = model.config.model_copy(update={"class_names": names})
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(FractalError, match=r"tiny \(4\) are not the model's \(4"):
        workplace.run(
            "likelihood", "--data", "tiny", "--conditional", "--model", tmp_path / "model"
        )


@pytest.mark.parametrize("command", ["likelihood", "sample"])
def test_the_help_names_the_option_workers(command):
    done = CliRunner().invoke(app, [command, "--help"])
    assert done.exit_code == 0
    assert "--workers" in done.output
