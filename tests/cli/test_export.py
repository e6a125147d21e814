"""`fractal export`: the folder, its card, and the push to a hub on this machine."""

from __future__ import annotations

import huggingface_hub.constants
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from typer.testing import CliRunner

from fractal_model.cli.app import app
from fractal_model.common.errors import FractalError
from fractal_model.config.params import load_params
from fractal_model.evaluation.protocol import Record
from fractal_model.model.fractal import FractalModel
from fractal_model.model.weights import weights_checksum
from fractal_model.tracking import registration, registry, runs, store
from fractal_model.tracking.model_source import load_model
from tests.support import REPOSITORY
from tests.support.evaluated_rows import protocol
from tests.support.fake_hub import TOKEN, running_hub
from tests.support.protocols import manifest
from tests.support.tiny_files import TINY, save_tiny

FILES = {"README.md", "config.json", "model.safetensors", "serving.json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tiny model, which has the size `digits` of the params.yaml in there."""
    folder = tmp_path_factory.mktemp("project")
    content = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    content["models"]["digits"].update(TINY, patch_sizes=[4, 2, 1], num_classes=4)
    content["sampling"]["digits"]["iterations"] = [4, 4]
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    save_tiny(folder / "model")
    return folder


@pytest.fixture
def model(folder):
    return folder / "model"


@pytest.fixture
def export(folder, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(*arguments: object) -> str:
        words = ["export", "--params", folder / "params.yaml", *arguments]
        done = CliRunner().invoke(app, [str(word) for word in words])
        if done.exception:
            raise done.exception
        return done.output

    return run


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
        yield hub


def _register(folder, checkpoint) -> str:
    settings = load_params(folder / "params.yaml")
    size, outputs = settings.size("digits"), settings.paths.outputs
    store.connect(outputs)
    with runs.import_run(size, checkpoint, "0" * 64, outputs) as run_id:
        tags = {"fractal.import_run": run_id}
        return registration.register("digits", checkpoint, serving=size.serving, tags=tags)


@pytest.fixture(scope="module")
def registered(folder):
    """Address of a registered version with three evaluations: the newest is of other weights, the
    second of a preview."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        version = _register(folder, folder / "model")
    settings = load_params(folder / "params.yaml")
    size, outputs = settings.size("digits"), settings.paths.outputs
    checksum = weights_checksum(load_model(str(folder / "model"), outputs))
    for fid, weights, samples in ((35.46, checksum, 30), (80.0, checksum, 5), (1.0, "f" * 64, 30)):
        record = Record.now(
            protocol(samples_per_class=samples),
            model=f"models:/fractal-digits/{version}",
            version=version,
            model_checksum=weights,
        )
        with runs.evaluation_run(size, manifest("digits"), record, outputs) as run_id:
            runs.mlflow.log_metrics({record.protocol.label("fid"): fid, "fid_stderr": 0.5})
            runs.log_picture(torch.full((3, 4, 4), int(fid), dtype=torch.uint8), "samples.png")
        tag = f"{registry.evaluation_tag(record.checksum)}-{weights[:4]}"
        registry.tag_version("digits", version, tag, run_id)
    return f"models:/fractal-digits/{version}"


def test_a_folder_is_loaded_as_the_same_model(export, model, tmp_path):
    out = tmp_path / "exported"
    export("--model", model, "--out", out)
    assert {path.name for path in out.iterdir()} == FILES
    expected = load_model(str(model), tmp_path)
    loaded = FractalModel.from_pretrained(out)
    assert loaded.config == expected.config
    weights = expected.state_dict()
    assert all(tensor.equal(weights[name]) for name, tensor in loaded.state_dict().items())
    with pytest.raises(FractalError, match="exists already"):
        export("--model", model, "--out", out)


def test_a_registered_model_s_card_has_its_evaluation(export, registered, tmp_path):
    """The numbers are those of the exported weights by the full protocol."""
    out = tmp_path / "exported"
    export("--model", registered, "--out", out)
    card = ModelCard.load(out / "README.md")
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("fid", 35.46)
    assert result.metric_args["standard_error"] == 0.5
    assert result.metric_args["protocol"] == protocol().fingerprint
    with Image.open(out / "samples.png") as picture:
        assert picture.getpixel((0, 0)) == (35, 35, 35)


def test_weights_that_were_not_evaluated_have_no_numbers(export, registered, folder, tmp_path):
    version = _register(folder, save_tiny(tmp_path / "other", sharpen=2.0))
    for key, value in registry.version_tags("digits", "1").items():
        registry.tag_version("digits", version, key, value)
    other = f"models:/fractal-digits/{version}"
    out = tmp_path / "exported"
    assert "has no evaluation of these weights" in export("--model", other, "--out", out)
    assert not ModelCard.load(out / "README.md").data.eval_results
    assert not (out / "samples.png").exists()


def test_a_push_sends_what_a_dry_run_writes(export, registered, hub, tmp_path):
    out = tmp_path / "exported"
    printed = export("--model", registered, "--push", "someone/tiny", "--dry-run", "--out", out)
    assert "nothing is pushed; someone/tiny would receive README.md, config.json" in printed
    assert not hub.created
    printed = export("--model", registered, "--push", "someone/tiny")
    assert f"pushed {registered} to {hub.address}/someone/tiny" in printed
    written = {path.name: path.read_bytes() for path in out.iterdir()}
    assert written.keys() == FILES | {"samples.png"}
    assert hub.files == {"someone/tiny": written}
    assert ModelCard(hub.validated[0]).data.model_name == "tiny"


def test_a_dry_run_needs_no_token(export, model, tmp_path, monkeypatch):
    monkeypatch.setattr("fractal_model.checkpoints.hub_upload.get_token", lambda: None)
    out = tmp_path / "exported"
    export("--model", model, "--push", "someone/tiny", "--dry-run", "--out", out)
    assert (out / "README.md").is_file()


def test_a_push_without_a_token_ends_before_the_work(export, model, tmp_path, monkeypatch):
    monkeypatch.setattr("fractal_model.checkpoints.hub_upload.get_token", lambda: None)
    with pytest.raises(FractalError, match="hf auth login"):
        export("--model", model, "--push", "someone/tiny", "--out", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_own_samples_and_licence_stand_on_the_card(export, model, tmp_path):
    picture, out = tmp_path / "grid.png", tmp_path / "exported"
    Image.new("RGB", (4, 4)).save(picture)
    export("--model", model, "--out", out, "--samples", picture, "--license", "cc-by-4.0")
    assert (out / "samples.png").read_bytes() == picture.read_bytes()
    assert ModelCard.load(out / "README.md").data.license == "cc-by-4.0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no folder is named"),
        (["--push", "a/b", "--dry-run"], "no folder is named"),
        (["--out", "x", "--dry-run"], "a dry run needs a repository"),
        (["--out", "x", "--push", "tiny"], "expected USER/NAME"),
        (["--out", "x", "--license", "My own"], "'My own' is no licence"),
        (["--out", "x", "--samples", "missing.png"], "missing.png is no picture"),
        (["--out", "x", "--samples", str(REPOSITORY / "docs" / "growth.gif")], "is GIF, expected"),
        (["--out", "x", "--samples", str(REPOSITORY / "README.md")], "README.md is no picture"),
    ],
)
def test_a_wrong_option_is_an_error_on_one_line(export, model, arguments, message):
    with pytest.raises(FractalError, match=message) as raised:
        export("--model", model, *arguments)
    assert "\n" not in str(raised.value)
