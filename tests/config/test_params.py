"""The shipped params.yaml loads, and every mistake in it is named on one line."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import yaml

from fractal_model.common.errors import FractalError
from fractal_model.config.params import Params, load_params
from tests.support import REPOSITORY
from tests.support.params import SHIPPED, small_params


def test_the_shipped_file_loads():
    params = load_params(SHIPPED)
    digits = params.size("digits")
    assert digits.model.image_size == 8
    assert [level.generator for level in digits.model.levels] == ["mar", "mar"]
    assert digits.training.peak_learning_rate == pytest.approx(2e-3)
    assert params.paths.data == SHIPPED.parent / "data"


def _set(*path, value):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


def _rename(*path, to):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        content[to] = content.pop(path[-1])

    return change


MISTAKES = [
    (_set("pipeline", "sizes", "mar-xl", value="digits"), ["pipeline.sizes", "'mar-xl'", "mar-l"]),
    (
        _set("pipeline", "sizes", "digits", value="flowers"),
        ["pipeline.sizes.digits is 'flowers'", "training.digits.dataset is 'digits'", "in both"],
    ),
    (_rename("training", to="trainning"), ["'trainning'", "did you mean 'training'"]),
    (
        _rename("training", "digits", "batch_size", to="batchsize"),
        ["training.digits.batchsize", "did you mean 'batch_size'", "is missing"],
    ),
    (_set("sampling", "digits", "temperature", value=1.1), ["sampling.digits.temperature"]),
    (_set("ddo", value={"mar-xl": {}}), ["ddo has the size 'mar-xl'", "mar-l"]),
    (_set("ddo", value={"ar-64": {"share": 2}}), ["ddo.ar-64.share"]),
    (_set("models", "digits", "patch_sizes", value=[8, 3, 1]), ["8", "multiple", "3"]),
    (_set("models", "digits", "patch_sizes", value=[8, 2]), ["down to the pixel"]),
    (_set("models", "digits", "heads", value=[5, 2, 1]), ["heads 5", "width 128"]),
    (_set("models", "digits", "heads", value=[4, 2]), ["heads has length 2"]),
    (_set("models", "digits", "generators", value=["mar", "gan"]), ["models.digits.generators"]),
    (_set("models", "digits", "generators", value=["ar", "mar"]), ["conditions to 1"]),
    (_set("models", "digits", "generators", value=["mar"]), ["generators has length 1"]),
    (_set("training", "digits", "batch_size", value=63), ["63", "2 workers", "workers to 1 or 3"]),
    (_set("training", "digits", "min_workers", value=3), ["min_workers 3", "workers 2"]),
    (
        _set("training", "digits", "activation_checkpointing", value=[True, False]),
        ["length 2", "3 values, one for each level"],
    ),
    (
        _set("training", "digits", "activation_checkpointing", value="everything"),
        ["activation_checkpointing", "'everything'", "selective"],
    ),
    (
        _set("training", "digits", "activation_checkpointing", value=[True, "some", False]),
        ["activation_checkpointing", "'some'", "selective"],
    ),
    (_set("training", "digits", "resources_per_worker", value={"CPU": 0}), ["per_worker.CPU"]),
    (_set("training", "digits", "non_finite", value="ignore"), ["non_finite", "'skip'"]),
    (_set("training", "digits", "epochs", value=0), ["training.digits.epochs", "0"]),
    (_set("training", "digits", "warmup_epochs", value=99), ["warmup_epochs 99"]),
    (_set("training", "digits", "precision", value="float16"), ["precision", "float16"]),
    (_set("training", "digits", "base_learning_rate", value=float("nan")), ["learning_rate"]),
    (_set("sampling", "digits", "guidance", value=-1), ["sampling.digits.guidance", "-1"]),
    (_set("sampling", "digits", "iterations", value=[17, 4]), ["17", "1 … 16"]),
    (
        _set("sampling", "digits", "guidance_interval", value=[0.8, 0.2]),
        ["sampling.digits.guidance_interval", "below the second one"],
    ),
    (
        _set("sampling", "digits", "guidance_schedule", value="square"),
        ["sampling.digits.guidance_schedule", "'linear', 'constant' or 'cosine'"],
    ),
    (_set("sampling", "digits", "guide", value=" "), ["sampling.digits.guide"]),
    (_set("sampling", "digits", "guidance", value=1001), ["sampling.digits.guidance", "1000"]),
    (_set("evaluation", "mar-l", value={}), ["evaluation.mar-l"]),
    (
        _set("evaluation", "digits", "weights", value="ema"),
        ["evaluation.digits.weights is ema", "training.digits.ema_decays [] there is no moving"],
    ),
    (_set("evaluation", "digits", "weights", value="EMA"), ["digits.weights", "names no weights"]),
    (_set("training", "digits", "ema_decays", value=[1.0]), ["ema_decays.0", "less than 1"]),
    (_set("training", "digits", "ema_decays", value=[0.9, 0]), ["ema_decays.1", "greater than 0"]),
    (_set("training", "digits", "ema_decays", value=[0.9, 0.9]), ["a decay is there twice"]),
    (
        _set("training", "digits", "ema_decays", value=[n / 10 for n in range(1, 10)]),
        ["digits.ema_decays", "at most 8"],
    ),
    (_set("training", "digits", "ema_decay", value=0.9), ["ema_decay and ema_decays are both"]),
    (
        _set("sweep", "digits", "weights", value=["model", "ema-0.9"]),
        ["sweep.digits.weights is ema-0.9", "ema_decays [] there is no moving average"],
    ),
    (
        _set("sweep", "digits", "weights", value=["model"] * 10),
        ["sweep.digits.weights", "at most 9"],
    ),
    (_rename("sampling", "digits", to="digit"), ["sampling", "digit"]),
    (_set("nightly", "cron", value="0 1 * *"), ["nightly.cron", "5 fields", "'0 1 * *'"]),
    (_set("nightly", "cron", value="99 99 * * *"), ["nightly.cron", "Bad minute", "'99 99"]),
    (_set("training", "digits", "dataset", value="../../etc"), ["digits.dataset", "'../../etc'"]),
    (_set("training", "digits", "flip", value="off"), ["digits.flip", "true or false", "'off'"]),
    (
        _set("training", "digits", "resources_per_worker", value={"cpu": 1, "": 1}),
        ["did you mean CPU?, found 'cpu'", "a resource needs a name: CPU, GPU, memory"],
    ),
    (_set("paths", "data", value=""), ["paths.data: give a folder"]),
    (_set("paths", "data", value="~nobody-here/x"), ["a path cannot be used"]),
    (_set("paths", "outputs", value="s3://b/x"), ["paths.outputs: give a folder", "paths.remote"]),
    (_set("paths", "training", value=""), ["paths.training"]),
    (_set("nightly", "timezone", value="Mars/Base"), ["nightly.timezone", "Europe/Berlin"]),
    (_set("nightly", "budget_hours", value=0), ["nightly.budget_hours", "0"]),
    (_set("nightly", "notification_block", value="slack"), ["notification_block", "slack"]),
    (_rename("sweep", "digits", to="digit"), ["sweep has the size 'digit'"]),
    (_set("sweep", "digits", "guidance", value=[]), ["sweep.digits.guidance"]),
    (_set("sweep", "digits", "guidance", value=[-1.0]), ["sweep.digits.guidance", "-1"]),
    (_set("sweep", "digits", "logit_scale", value=[0.0]), ["sweep.digits.logit_scale"]),
    (_set("sweep", "digits", "iterations", value=[[17, 4]]), ["17", "1 … 16"]),
    (_set("sweep", "digits", "keep", value=1), ["sweep.digits.keep", "1"]),
    (_set("sweep", "digits", "samples", value=0), ["sweep.digits.samples", "0"]),
    (_set("sweep", "digits", "guidance", value=[1.0] * 400), ["1,200 combinations", "1,000"]),
    (_set("training", "digits", "epochs", value=True), ["digits.epochs", "not true or false"]),
    (_set("training", "digits", "clip_norm", value=True), ["clip_norm", "not true or false"]),
    (
        _set("training", "digits", "workers", value=2**31),
        ["digits.workers", "10000", str(2**31)],
    ),
    (_set("training", "digits", "clip_norm", value=10**400), ["clip_norm", "1,329 bits"]),
    (_set("training", "digits", "seed", value=2**32), ["digits.seed", str(2**32 - 1)]),
    (_set("training", "digits", "dataset", value="d" * 9999), ["dataset", "found 'ddd", "…"]),
    (
        _set("training", "digits", "resources_per_worker", value={"CPU": float("inf")}),
        ["per_worker.CPU", "finite"],
    ),
    (_set("models", "digits", "widths", value=[2**20, 64, 32]), ["digits.widths.0", "65536"]),
    (_set("models", "digits", "patch_sizes", value=[1] * 99), ["digits.patch_sizes", "13"]),
    (_set("models", "digits", "num_classes", value=10**12), ["num_classes", "1000000"]),
    (_set("sampling", "digits", "iterations", value=[10**9, 4]), ["digits.iterations.0"]),
    (_set("evaluation", "digits", "samples_per_class", value=10**12), ["samples_per_class"]),
    (_set("evaluation", "digits", "fid_resamples", value=10**9), ["fid_resamples", "100000"]),
    (
        _set("evaluation", "digits", "seed", value=2**32 - 299),
        ["evaluation.digits count up to 4294967296", "4294967295"],
    ),
    (_set("preparation", "processes", value=10**6), ["preparation.processes", "1024"]),
    (
        _set("training", "emoji-64", "mask_ratio", value="uniform"),
        ["training.emoji-64.mask_ratio is uniform", "all ar, which have no masks: remove"],
    ),
]


def test_every_number_of_params_yaml_has_a_largest_value():
    schema = Params.model_json_schema()
    parts = {"": schema, **schema["$defs"]}
    unbounded = [
        f"{name}.{field}"
        for name, part in parts.items()
        for field, schema in part.get("properties", {}).items()
        for number in _numbers_in(schema)
        if not number.keys() & {"maximum", "exclusiveMaximum"}
    ]
    assert unbounded == []


def _numbers_in(part: object) -> Iterator[dict]:
    if isinstance(part, dict):
        if part.get("type") in ("integer", "number"):
            yield part
        for value in part.values():
            yield from _numbers_in(value)
    elif isinstance(part, list):
        for value in part:
            yield from _numbers_in(value)


@pytest.mark.parametrize(("change", "words"), MISTAKES)
def test_a_mistake_is_named_on_one_line(tmp_path, change, words):
    content = yaml.safe_load(SHIPPED.read_text())
    change(content)
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(FractalError) as raised:
        load_params(file)
    text = str(raised.value)
    assert "\n" not in text
    assert text.startswith(str(file))
    for word in words:
        assert word in text


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    content = yaml.safe_load(SHIPPED.read_text())
    content["paths"] |= {"data": "~/x", "outputs": "~", "training": "~/t"}
    content["metrics"] |= {"inception_weights": "~/i.pth", "dinov2_weights": "~/d.pth"}
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(content))
    params, home = load_params(file), tmp_path / "home"
    assert (params.paths.data, params.paths.outputs) == (home / "x", home)
    assert params.paths.training == str(home / "t")
    assert params.metrics.inception_weights == str(home / "i.pth")
    assert params.metrics.dinov2_weights == str(home / "d.pth")


@pytest.mark.parametrize(
    ("source", "absolute"),
    [
        ("runs/a#ema", "{folder}/runs/a#ema"),
        ("/runs/a", "/runs/a"),
        ("models:/fractal-digits@champion", "models:/fractal-digits@champion"),
    ],
)
def test_a_model_to_start_from_and_a_guide_are_relative_to_the_file(tmp_path, source, absolute):
    content = small_params()
    content["training"]["digits"]["start_from"] = source
    content["sampling"]["digits"]["guide"] = source
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(content))
    params = load_params(file)
    assert params.training["digits"].start_from == absolute.format(folder=tmp_path)
    assert params.sampling["digits"].guide == absolute.format(folder=tmp_path)
    assert params.training["mar-b"].start_from is None


def test_a_key_that_occurs_twice_is_an_error_with_both_lines(tmp_path):
    text = SHIPPED.read_text()
    lines = text.splitlines()
    line = next(i for i, line in enumerate(lines, 1) if line.strip().startswith("epochs: 22"))
    file = tmp_path / "params.yaml"
    file.write_text("\n".join([*lines[:line], "    epochs: 800", *lines[line:]]))
    with pytest.raises(
        FractalError, match=f"'epochs' occurs twice, in line {line} and in .*{line + 1}"
    ):
        load_params(file)


@pytest.mark.parametrize("value", ["2024-99-99", "[" * 500 + "]" * 500, '"\\0"', "1" * 5000])
def test_a_value_that_the_yaml_parser_refuses_is_one_line(tmp_path, value):
    file = tmp_path / "params.yaml"
    file.write_text(SHIPPED.read_text().replace("epochs: 22", f"epochs: {value}"))
    with pytest.raises(FractalError) as raised:
        load_params(file)
    text = str(raised.value)
    assert text.startswith(f"{file}: ") and "\n" not in text and len(text) < 400


def test_a_missing_file_is_named_with_its_setting(tmp_path):
    with pytest.raises(FractalError, match=r"params\.yaml is missing in") as raised:
        load_params(tmp_path / "params.yaml")
    assert raised.value.setting == "params"


@pytest.mark.parametrize("content", ["training: [", "just text", ""])
def test_a_file_without_settings_is_refused_on_one_line(tmp_path, content):
    file = tmp_path / "params.yaml"
    file.write_text(content)
    with pytest.raises(FractalError, match=r"params\.yaml") as raised:
        load_params(file)
    assert "\n" not in str(raised.value)


def test_an_unknown_size_is_refused_with_the_known_ones():
    with pytest.raises(FractalError, match="'flowers' is unknown, known are digits, digits-nll"):
        load_params(SHIPPED).size("flowers")
    with pytest.raises(FractalError, match="'digist' is unknown, did you mean 'digits'"):
        load_params(SHIPPED).size("digist")


def test_sizes_with_the_same_layers_that_are_used_alike_count_as_one():
    params = load_params(SHIPPED)
    model = params.size("mar-64-80").model
    assert params.find_size(model).name == "mar-64"
    other = load_params(SHIPPED, ["sampling.mar-64-80.guidance=3"])
    with pytest.raises(
        FractalError,
        match="have the layers .*, but differ: choose .*mar-64-80 or mar-64-nll or mar-64-fid$",
    ):
        other.find_size(model)


def test_settings_of_a_model_do_not_matter_for_images_from_files():
    params = load_params(SHIPPED)
    assert params.evaluation["digits-nll"] != params.evaluation["digits"]
    assert params.find_evaluation("digits", None) == params.evaluation["digits"]
    workers = load_params(SHIPPED, ["evaluation.digits-nll.workers=2"])
    assert workers.find_evaluation("digits", None) == params.evaluation["digits"]
    other = load_params(SHIPPED, ["evaluation.digits-nll.samples_per_class=5"])
    with pytest.raises(FractalError, match="2 different ways to evaluate on digits"):
        other.find_evaluation("digits", None)


def test_the_documented_rows_of_a_fine_tuning_load(tmp_path):
    """Each row is put under the heading of its section, so that it can use the file's anchors."""
    page = (REPOSITORY / "docs/training.md").read_text()
    block = page.partition("```yaml\n")[2].partition("```")[0]
    text = SHIPPED.read_text()
    rows = re.findall(r"^(\w+):\n(  flowers-b: .*)$", block, re.MULTILINE)
    assert [section for section, _ in rows] == ["models", "training", "sampling", "evaluation"]
    for section, row in rows:
        text = re.sub(rf"^({section}:\n(?:  .*\n)+)", rf"\1{row}\n", text, flags=re.MULTILINE)
    (tmp_path / "params.yaml").write_text(text)
    size, published = (
        load_params(tmp_path / "params.yaml").size(n) for n in ("flowers-b", "mar-b")
    )
    assert size.training.start_from == "models:/fractal-mar-b@candidate"
    assert size.model == published.model.model_copy(update={"num_classes": 5})
    assert size.sampling == published.sampling
