"""`fractal import`, from a size or a downloaded file to the registry."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import pickle
import zipfile
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from fractal_model.checkpoints.checkpoint import load_checkpoint
from fractal_model.checkpoints.importing import IMAGENET_TRAINING_IMAGES, IMPORTED, read_published
from fractal_model.checkpoints.parity import Case
from fractal_model.cli.app import app
from fractal_model.common.errors import FractalError
from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.serving import ServingConfig
from fractal_model.model.fractal import FractalModel
from fractal_model.model.losses import published_evaluation_loss
from fractal_model.sampling.sampler import Sampler
from fractal_model.tracking import registry, store
from fractal_model.tracking.model_source import load_model
from tests.support import REPOSITORY
from tests.support.file_server import serving

CASES = REPOSITORY / "tests" / "parity"


def _row(settings: dict) -> dict:
    levels = len(settings["img_size_list"])
    return {
        "patch_sizes": settings["img_size_list"],
        "widths": settings["embed_dim_list"],
        "blocks": settings["num_blocks_list"],
        "heads": settings["num_heads_list"],
        "generators": settings["generator_type_list"][: levels - 1],
        "conditions": settings["num_conds"],
        "guiding_pixel": settings["guiding_pixel"],
        "num_classes": settings["num_classes"],
    }


@pytest.fixture
def params(tmp_path) -> Path:
    """The shipped settings with the parity cases as sizes, and mar3 with ImageNet's classes."""
    content = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    rows = {
        name: _row(json.loads((CASES / name / "config.json").read_text()))
        for name in ("mar3", "ar3", "mar4")
    }
    rows["mar3-1000"] = {**rows["mar3"], "num_classes": 1000}
    for section in ("training", "evaluation"):
        content[section] = dict.fromkeys(rows, content[section]["digits"])
    content["models"] = rows
    content["sweep"] = content["pipeline"] = {}
    content["sampling"] = {
        name: {"guidance": 2.0, "iterations": [1] * len(row["generators"])}
        for name, row in rows.items()
    }
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def _content(case: str) -> dict:
    """The content of a published checkpoint, with its optimiser state."""
    weights = load_file(CASES / case / "weights.safetensors")
    args = argparse.Namespace(
        output_dir=pathlib.PosixPath("/somewhere/out"),
        batch_size=64,
        lr=None,
        betas=[0.9, 0.95],
        device="cuda",
        dtype=torch.bfloat16,
        target=torch.device("cuda", 1),
    )
    state = {0: {"step": torch.tensor(5.0), "exp_avg": torch.zeros(3)}}
    return {
        "model": weights,
        "optimizer": {"state": state, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "epoch": 799,
        "scaler": {"scale": 65536.0, "_growth_tracker": 3},
        "args": args,
    }


@pytest.fixture
def published(tmp_path):
    """A function that writes a case as checkpoint-last.pth, after `change` has changed it."""

    def write(case: str = "mar3", change=lambda content: None) -> Path:
        content = _content(case)
        change(content)
        file = tmp_path / "checkpoint-last.pth"
        torch.save(content, file)
        return file

    return write


@pytest.fixture
def fractal(params):
    def run(*arguments: object) -> str:
        done = CliRunner().invoke(app, [*map(str, arguments), "--params", str(params)])
        if done.exception:
            raise done.exception
        return done.output

    return run


@pytest.fixture
def refused(fractal, tmp_path):
    """A function that checks that the import of a file fails, and returns the error."""

    def run(file: Path, size: str = "mar3") -> str:
        with pytest.raises(FractalError) as raised:
            fractal("import", file, "--size", size, "--out", tmp_path / "imported")
        assert not (tmp_path / "imported").exists()
        assert "\n" not in str(raised.value)
        assert str(file) in str(raised.value)
        return str(raised.value)

    return run


@pytest.mark.parametrize("name", ["mar3", "ar3", "mar4"])
def test_an_imported_model_is_the_published_one(fractal, published, tmp_path, name):
    folder = tmp_path / "imported"
    fractal("import", published(name), "--size", name, "--out", folder)
    case = Case.read(CASES / name)
    model = load_model(str(folder), tmp_path)
    unconditional = torch.full_like(case.inputs["labels"], -1)
    with torch.no_grad():
        loss = published_evaluation_loss(Case(model, case.inputs, case.expected).run(unconditional))
    expected = case.expected["eval_loss_unconditional_nats"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_an_import_has_no_optimiser_state(fractal, published, tmp_path):
    folder = tmp_path / "imported"
    fractal("import", published(), "--size", "mar3", "--out", folder)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.optimizer is None
    assert checkpoint.progress.fingerprint == IMPORTED
    assert checkpoint.progress.size == "mar3"
    assert checkpoint.progress.position == 0  # Only ImageNet has a known number of images.
    assert checkpoint.config.class_names == ()
    assert not (folder / "optimizer.pt").exists()


def test_imagenet_sizes_know_their_classes_and_position(fractal, published, tmp_path, params):
    def thousand(content):
        content["model"]["class_emb.weight"] = torch.randn(1000, 64)

    folder = tmp_path / "imported"
    fractal("import", published(change=thousand), "--size", "mar3-1000", "--out", folder)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.config.class_names[0] == "tench"
    assert checkpoint.config.class_names[207] == "golden retriever"
    batch_size = yaml.safe_load(params.read_text())["training"]["mar3-1000"]["batch_size"]
    assert checkpoint.progress.position == 800 * IMAGENET_TRAINING_IMAGES
    assert checkpoint.progress.steps == 800 * IMAGENET_TRAINING_IMAGES // batch_size


def test_half_precision_weights_become_float32(fractal, published, tmp_path):
    def halve(content):
        content["model"] = {name: tensor.half() for name, tensor in content["model"].items()}

    folder = tmp_path / "imported"
    fractal("import", published(change=halve), "--size", "mar3", "--out", folder)
    weights = load_checkpoint(folder).weights
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_an_existing_folder_is_not_overwritten(fractal, published, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("kept")
    with pytest.raises(FractalError, match="exists already"):
        fractal("import", published(), "--size", "mar3", "--out", tmp_path / "mine")
    assert (tmp_path / "mine" / "file").read_text() == "kept"


def test_the_error_names_the_size_that_fits(refused, published):
    line = refused(published("mar4"))
    assert "give the size mar4" in line
    assert "extra" in line


def test_a_size_with_normalised_queries_and_keys_is_refused(fractal, published):
    with pytest.raises(
        FractalError, match=r"^the size mar3 normalises .* models.mar3.qk_norm to f"
    ):
        fractal("import", published(), "--size", "mar3", "--set", "models.mar3.qk_norm=true")


def test_missing_extra_and_misshapen_weights_are_counted(refused, published):
    def change(content):
        weights = content["model"]
        for name in [name for name in weights if "blocks.1" in name]:
            del weights[name]
        weights["generator.teacher"] = torch.zeros(1)
        weights["fake_latent"] = torch.zeros(1, 3)

    line = refused(published(change=change))
    assert "1 extra (levels.0.teacher)" in line
    assert "1 of another shape (null_embedding [1, 3] instead of [1, 64])" in line
    assert "missing (levels.0.blocks.1." in line
    assert ", …)" in line
    assert "none of the sizes" in line


class _Payload:
    def __init__(self, call, *arguments):
        self.call = (call, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("call", "named"), [(os.system, "posix.system"), (eval, "eval"), (Path.touch, "getattr")]
)
@pytest.mark.parametrize("place", ["args", "model", "optimizer", "hidden in args"])
def test_code_is_refused_by_name_and_does_not_run(refused, published, tmp_path, call, named, place):
    trap = tmp_path / "executed"
    arguments = {
        os.system: (f"touch '{trap}'",),
        eval: (f"open({str(trap)!r}, 'w').close()",),
        Path.touch: (trap,),
    }[call]
    payload = _Payload(call, *arguments)

    def change(content):
        if place == "hidden in args":
            content["args"].output_dir = payload
        else:
            content[place] = payload

    file = published(change=change)
    assert not trap.exists()
    line = refused(file)
    assert named in line
    assert "nothing in it was run" in line
    assert not trap.exists()
    torch.load(file, weights_only=False)  # Without the check, the code would run.
    assert trap.exists()


def test_other_pickle_protocols_are_refused(refused, tmp_path):
    """Other protocols can hide the name of a function from the check."""
    trap, file = tmp_path / "executed", tmp_path / "checkpoint-last.pth"
    content = {**_content("mar3"), "args": _Payload(Path.touch, trap)}
    torch.save(content, file, pickle_protocol=4)
    assert "nothing in it was run" in refused(file)
    assert not trap.exists()


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])


def _hole(file: Path) -> None:
    """Damage the middle of a file, as an interrupted parallel download does."""
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
    with file.open("r+b") as stream:
        stream.seek(largest.header_offset + largest.file_size // 2)
        stream.write(bytes(200))


def _pickle_only(file: Path) -> None:
    file.write_bytes(pickle.dumps({"model": {}}, protocol=2))


def _old_format(file: Path) -> None:
    torch.save({"model": {}}, file, _use_new_zipfile_serialization=False)


def _other_zip(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("photo.png", b"pixels")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.unlink(), "does not exist"),
        (lambda file: file.write_bytes(b""), "is empty"),
        (_cut, "partial download"),
        (_hole, "is damaged"),
        (lambda file: file.write_bytes(b"\n<!DOCTYPE html><html>Sign in</html>"), "web page"),
        (_pickle_only, "before 1.6"),
        (_old_format, "before 1.6"),
        (lambda file: file.write_bytes(b"version https://git-lfs"), "'version https"),
        (_other_zip, "is refused"),
    ],
    ids=["missing", "empty", "cut", "hole", "html", "pickle", "old", "pointer", "other zip"],
)
def test_an_unusable_file_is_an_error_on_one_line(refused, published, spoil, message):
    file = published()
    spoil(file)
    assert message in refused(file)


def test_a_changed_byte_anywhere_is_an_error_on_one_line(published, fractal, tmp_path):
    """Most changes are in the archive's table of contents, where reading fails in many ways."""
    file, random = published(), np.random.default_rng(0)
    whole = file.read_bytes()
    errors = []
    for trial in range(150):
        content = bytearray(whole)
        tail = trial % 3 > 0
        place = random.integers(len(content) - 6000 if tail else 0, len(content))
        content[place] ^= int(random.integers(1, 256))
        file.write_bytes(content)
        try:
            read_published(file, lambda done: None)
        except FractalError as error:
            errors.append(str(error))
    assert len(errors) > 100  # Some bytes, such as dates, have no effect.
    assert not any("\n" in line for line in errors)


def test_weights_that_are_not_finite_are_refused(refused, published):
    def spoil(content):
        content["model"]["fake_latent"][0, 3] = float("nan")

    assert "null_embedding is not finite in float32" in refused(published(change=spoil))


def test_a_weight_that_float32_cannot_hold_is_refused(refused, published):
    """The converted weight is checked: 1e300 is finite in float64 and infinite in float32."""

    def spoil(content):
        weight = content["model"]["fake_latent"].double()
        weight.flatten()[0] = 1e300
        assert weight.isfinite().all()
        content["model"]["fake_latent"] = weight

    assert "null_embedding is not finite in float32" in refused(published(change=spoil))


def test_a_weight_with_a_huge_shape_takes_no_memory(refused, published):
    """An expanded tensor has few bytes in the file."""

    def expand(content):
        content["model"]["fake_latent"] = torch.zeros(1).expand(10**13)

    assert "null_embedding [10000000000000] instead of [1, 64]" in refused(published(change=expand))


def test_a_folder_is_no_checkpoint_file(refused, tmp_path):
    assert "is a folder" in refused(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("model"), "found the keys ['optimizer', 'epoch', 'scaler']"),
        (lambda content: content.update(model=torch.zeros(3)), "table of weights"),
        (lambda content: content["model"].update(fake_latent=3), "'fake_latent' of its `model`"),
        (
            lambda content: content["model"].update(fake_latent=torch.ones(1, 64).long()),
            "torch.int64",
        ),
    ],
)
def test_another_file_of_torch_is_refused(refused, published, change, message):
    assert message in refused(published(change=change))


def test_two_names_for_one_parameter_are_refused(refused, published):
    def change(content):
        weights = content["model"]
        (name, *_) = (n for n in weights if n.startswith("generator.") and ".mlp.fc1.w" in n)
        weights[name.replace(".mlp.", ".feed_forward.")] = weights[name].clone()

    assert "expected one name for each" in refused(published(change=change))


@pytest.fixture
def mirror(published, tmp_path, monkeypatch):
    """A server of the file of mar3; the current folder and the cache are empty."""
    with serving(published().read_bytes()) as server:
        monkeypatch.setenv("FRACTAL_CACHE", str(tmp_path / "cache"))
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        yield server


def test_a_size_alone_is_downloaded_once_and_imported(fractal, published, mirror, tmp_path):
    arguments = ("import", "mar3", "--mirror", mirror.address)
    assert "imported mar3.pth as mar3: " in fractal(*arguments)
    fractal(*arguments, "--out", tmp_path / "again")
    assert [path for path, _ in mirror.requests] == ["/mar3.pth"]
    fractal("import", published(), "--size", "mar3", "--out", tmp_path / "expected")
    expected = load_checkpoint(tmp_path / "expected").weights
    for folder in (Path("mar3"), tmp_path / "again"):
        weights = load_checkpoint(folder).weights
        assert weights.keys() == expected.keys()
        assert all(tensor.equal(expected[name]) for name, tensor in weights.items())


def test_a_download_that_arrived_damaged_is_not_kept(fractal, published, mirror, tmp_path):
    file = published()
    _hole(file)
    whole, mirror.content = mirror.content, file.read_bytes()
    arguments = ("import", "mar3", "--mirror", mirror.address)
    with pytest.raises(FractalError, match=r"mar3.pth is damaged .* download it again"):
        fractal(*arguments)
    assert not Path("mar3").exists()
    mirror.content = whole
    assert "imported mar3.pth" in fractal(*arguments)


def test_an_existing_folder_is_reported_before_the_download(fractal, mirror):
    Path("mar3").mkdir()
    with pytest.raises(FractalError, match="mar3 exists already"):
        fractal("import", "mar3", "--mirror", mirror.address)
    assert not mirror.requests


def test_a_file_needs_its_size(fractal, published):
    with pytest.raises(FractalError, match="is a file: give its size"):
        fractal("import", published())


def test_an_unknown_size_is_named(fractal):
    with pytest.raises(FractalError, match="size 'mar-xl' is unknown, did you mean 'mar"):
        fractal("import", "mar-xl")


def test_a_file_needs_no_mirror(fractal, published):
    with pytest.raises(FractalError, match="a file needs no mirror"):
        fractal("import", published(), "--size", "mar3", "--mirror", "http://127.0.0.1:9")


def test_a_registered_import_is_the_candidate(fractal, published, tmp_path, monkeypatch):
    sampled = []
    monkeypatch.setattr(Sampler, "__call__", lambda *arguments: sampled.append(arguments))
    file = published()
    arguments = ("import", file, "--size", "mar3", "--register", "--out")
    assert "version 1 as candidate" in fractal(*arguments, tmp_path / "first")
    assert "version 1, of the same file, is" in fractal(*arguments, tmp_path / "second")
    assert not sampled  # Sampling would take hours with a large model.
    outputs = tmp_path / "outputs"
    model = load_model("models:/fractal-mar3@candidate", outputs)
    expected = load_model(str(tmp_path / "first"), outputs).state_dict()
    assert all(tensor.equal(expected[name]) for name, tensor in model.state_dict().items())

    store.connect(outputs)
    tags = registry.version_tags("mar3", "1")
    run = mlflow.MlflowClient().get_run(tags["fractal.import_run"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["fractal.kind"] == "import"
    assert run.data.tags["fractal.source_sha256"] == tags["fractal.source_sha256"]
    assert len(tags["fractal.source_sha256"]) == 64
    assert run.data.tags["fractal.source"] == "checkpoint-last.pth"


def test_a_server_that_is_down_is_an_error_before_files_are_written(
    fractal, published, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder = tmp_path / "imported"
    with pytest.raises(FractalError, match="does not answer"):
        fractal("import", published(), "--size", "mar3", "--out", folder, "--register")
    assert not folder.exists()


def test_an_exported_import_can_be_loaded(fractal, published, tmp_path):
    imported, exported = tmp_path / "imported", tmp_path / "exported"
    fractal("import", published(), "--size", "mar3", "--out", imported)
    fractal("export", "--model", imported, "--out", exported)
    names = {path.name for path in exported.iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "serving.json"}
    expected = load_model(str(imported), tmp_path)
    sampling = SamplingConfig(guidance=2.0, iterations=(1, 1))
    assert expected.serving == ServingConfig(weights="model", sampling=sampling)
    for model in (load_model(str(exported), tmp_path), FractalModel.from_pretrained(exported)):
        assert model.config == expected.config
        assert model.serving == expected.serving
        weights = expected.state_dict()
        assert all(tensor.equal(weights[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(FractalError, match="exists already"):
        fractal("export", "--model", imported, "--out", exported)
