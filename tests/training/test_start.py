"""The weights that a training starts from: read, refused, adapted to other classes, stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fractal_model.checkpoints.checkpoint import Progress, load_checkpoint, save_checkpoint
from fractal_model.common.errors import FractalError
from fractal_model.config.model import ModelConfig
from fractal_model.config.params import Size, load_params
from fractal_model.model.fractal import FractalModel
from fractal_model.model.likelihood import pass_bits
from fractal_model.model.weights import weights_checksum
from fractal_model.training.start import Start, adapt_classes, read_start
from tests.support import random_images, tiny_config, tiny_model
from tests.support.params import SHIPPED

NAMES = ("cat", "dog", "hen", "owl")
TABLE = "class_embedding.weight"


def named(config: ModelConfig, *names: str) -> ModelConfig:
    return config.model_copy(update={"class_names": names, "num_classes": len(names)})


@pytest.fixture
def parent() -> FractalModel:
    """A model of four animals."""
    model = tiny_model("guided")
    model.config = named(model.config, *NAMES)
    return model


def save(folder: Path, model: FractalModel, average: FractalModel | None = None) -> Path:
    progress = Progress(size="t", fingerprint="f", position=8, steps=1)
    averages = None if average is None else {"ema": average.state_dict()}
    save_checkpoint(folder, model=model, optimizer=None, progress=progress, averages=averages)
    return folder


def read(source: Path | str | None, config: ModelConfig, outputs: Path, seed: int = 0) -> Start:
    """What a training of a size with the model `config` starts from."""
    size = load_params(SHIPPED).size("digits")
    recipe = size.training.model_copy(
        update={"start_from": None if source is None else str(source), "seed": seed}
    )
    size = Size(**{**dict(size), "name": "tiny", "model": config, "training": recipe})
    return read_start(size, outputs)


def rest(model: FractalModel) -> dict[str, torch.Tensor]:
    """All weights but the class table."""
    return {name: tensor for name, tensor in model.state_dict().items() if name != TABLE}


def test_the_same_classes_keep_all_weights(parent, tmp_path):
    start = read(save(tmp_path / "c", parent), parent.config, tmp_path)
    assert start.checksum == start.source_checksum == weights_checksum(parent)
    assert start.new_classes == 0
    assert all(w.equal(parent.state_dict()[n]) for n, w in start.model.state_dict().items())


def test_classes_of_the_same_name_keep_their_embedding_and_others_get_a_new_one(parent):
    adapted = adapt_classes(parent, named(parent.config, "owl", "eel", "cat", "bee", "fox"), 3)
    table, theirs = adapted.class_embedding.weight, parent.class_embedding.weight
    assert table.shape == (5, 16)
    assert table[0].equal(theirs[3]) and table[2].equal(theirs[0])
    new = table[[1, 3, 4]]
    assert 0.01 < new.std() < 0.03  # as an untrained model's
    assert not any(row.equal(other) for row in new for other in theirs)
    again, other = (adapt_classes(parent, adapted.config, seed) for seed in (3, 4))
    assert again.class_embedding.weight.equal(table)
    assert not other.class_embedding.weight[1].equal(table[1])
    assert all(w.equal(rest(parent)[name]) for name, w in rest(adapted).items())
    assert adapted.config.class_names[1] == "eel"


@pytest.mark.parametrize(("count", "new"), [(4, 0), (3, 3)])
def test_without_names_only_as_many_classes_keep_their_embeddings(tmp_path, count, new):
    parent = tiny_model("ar")
    config = named(parent.config, *NAMES[:count])
    start = read(save(tmp_path / "c", parent), config, tmp_path)
    assert (start.classes, start.new_classes) == (count, new)
    kept = start.model.class_embedding.weight.equal(parent.class_embedding.weight[:count])
    assert kept == (new == 0)


@pytest.mark.parametrize("kind", ["ar", "mar"])
def test_the_adapted_model_computes_as_its_parent(kind):
    parent = tiny_model(kind)
    adapted = adapt_classes(parent, parent.config, 0)
    images, labels = random_images(3, 4), torch.tensor([0, 1, 2])
    bits = [pass_bits(m, images, [0, 1, 2], passes=2, labels=labels) for m in (parent, adapted)]
    assert bits[0].equal(bits[1])


def test_random_weights_are_no_start(tmp_path, parent):
    assert read(None, parent.config, tmp_path) is None


@pytest.mark.parametrize("form", ["checkpoint", "moving average", "exported"])
def test_each_form_of_a_source_is_read(parent, tmp_path, form):
    average = tiny_model("guided", sharpen=2.0)
    if form == "exported":
        parent.save_pretrained(tmp_path / "m")
    else:
        save(tmp_path / "m", parent, average)
    source = f"{tmp_path / 'm'}{'#ema' if form == 'moving average' else ''}"
    expected = average if form == "moving average" else parent
    start = read(source, parent.config, tmp_path)
    assert start.source_checksum == weights_checksum(expected)
    assert start.tags == {
        "fractal.start_from": source,
        "fractal.start_sha256": start.source_checksum,
    }


def test_another_dropout_is_no_other_layout(parent, tmp_path):
    config = tiny_config("guided", dropout=0.3)
    start = read(save(tmp_path / "c", parent), config, tmp_path)
    assert start.model.config.levels[0].dropout == 0.3


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("mar", {"patch_sizes": (8, 4, 1)}, "resolution is 4, that of the size tiny is 8"),
        ("guided", {"patch_sizes": (8, 2, 1), "generators": ("mar", "mar"), "guiding_pixel": False},
         "list of patch sizes is [8, 4, 2, 1], that of the size tiny is [8, 2, 1]"),
        ("mar", {"generators": ("mar", "ar")}, "generator in level 1 is mar"),
        ("mar", {"widths": (16, 32, 8)}, "width in level 1 is 16, that of the size tiny is 32"),
        ("mar", {"blocks": (1, 1, 2)}, "number of blocks in the pixel network is 1"),
        ("mar", {"heads": (4, 2, 2)}, "number of heads in level 0 is 2"),
        ("mar", {"conditions": 1}, "number of conditions in level 0 is 5"),
        ("guided", {"guiding_pixel": False}, "guiding pixel in level 1 is True"),
        ("ar", {"qk_norm": True}, "norm of queries and keys in level 0 is False"),
    ],
)  # fmt: skip
def test_another_layout_is_refused_with_the_first_difference(tmp_path, kind, changes, words):
    folder = save(tmp_path / "c", tiny_model(kind))
    with pytest.raises(FractalError) as raised:
        read(folder, tiny_config(kind, **changes), tmp_path)
    message = str(raised.value)
    assert words in message
    assert message.startswith(f"start_from {folder}: ") and "models.tiny" in message
    assert "\n" not in message and len(message) < 300 + len(str(folder))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("missing", "there is no model"),
        ("flipped", "model.safetensors .* does not match its checksum"),
        ("not finite", "null_embedding is not finite"),
        ("no average", "there is no moving average"),
        ("no version", "no version models:/fractal-none/1"),
        ("no number", "names no registered version: use models:/NAME/VERSION"),
    ],
)
def test_a_source_that_cannot_be_used_is_named_on_one_line(parent, tmp_path, damage, words):
    folder = tmp_path / "c"
    sources = {"no average": f"{folder}#ema", "no version": "models:/fractal-none/1"}
    source = {**sources, "no number": "models:/fractal-none"}.get(damage, str(folder))
    if damage == "not finite":
        torch.nn.init.constant_(parent.null_embedding, torch.inf)
    if damage != "missing":
        save(folder, parent)
    if damage == "flipped":
        content = bytearray((folder / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(FractalError, match=words) as raised:
        read(source, parent.config, tmp_path / "outputs")
    assert str(raised.value).startswith(f"start_from {source}: ")
    assert "\n" not in str(raised.value)


def test_a_published_file_has_to_be_imported_first(parent, tmp_path):
    (tmp_path / "checkpoint-last.pth").write_bytes(b"weights")
    with pytest.raises(
        FractalError, match="is a file, expected the folder of a model: .* `fractal import` first"
    ):
        read(tmp_path / "checkpoint-last.pth", parent.config, tmp_path)


def test_the_stored_copy_is_a_source_of_the_same_run(parent, tmp_path):
    """The run can be started again when its source is gone, also if its classes are new."""
    config = named(parent.config, "owl", "eel")
    start = read(save(tmp_path / "c", parent), config, tmp_path)
    start.store(str(tmp_path / "run/start"), size="tiny", fingerprint="f")
    assert start.describe() == f"first weights: {tmp_path / 'c'}; new classes: 1 of 2"
    assert start.model is None  # A large model's memory is free again.
    stored = load_checkpoint(tmp_path / "run/start")
    assert (stored.progress.position, stored.optimizer) == (0, None)
    assert stored.config == config
    again = read(tmp_path / "run/start", config, tmp_path)
    assert (again.checksum, again.new_classes) == (start.checksum, 0)


def test_weights_that_are_stored_already_are_kept(parent, tmp_path):
    folder = save(tmp_path / "c", parent)
    place = str(tmp_path / "start")
    read(folder, parent.config, tmp_path).store(place, size="t", fingerprint="f")
    marker = (tmp_path / "start/COMPLETE").stat().st_mtime_ns
    read(folder, parent.config, tmp_path).store(place, size="t", fingerprint="f")
    assert (tmp_path / "start/COMPLETE").stat().st_mtime_ns == marker
