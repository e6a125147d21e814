"""`fractal benchmark`: its results, its counts of operations, and its errors."""

import json
import time
from functools import cache

import pytest
import torch
from typer.testing import CliRunner

from fractal_model.cli.app import app
from fractal_model.common.compiler import has_compiler
from fractal_model.common.errors import FractalError
from fractal_model.config.model import ModelConfig
from fractal_model.config.params import load_params
from fractal_model.config.training import TrainingConfig
from fractal_model.costs import benchmark as module
from fractal_model.costs.benchmark import Work, likelihood_work, measure
from fractal_model.costs.flops import pass_products
from tests.support.params import SHIPPED

LAYERS = ["--levels", "4,2,1", "--widths", "16,16,16", "--blocks", "1,2,1", "--heads", "2,2,2"]
TINY = [*LAYERS, "--batch", "2", "--repeats", "1", "--no-compile"]


@pytest.fixture(autouse=True, scope="module")
def one_ceiling():
    """Measure the machine's ceiling once for all tests, because it takes longer than they do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ceiling_gflops", cache(module.ceiling_gflops))
        yield


def run(*arguments: str) -> dict:
    done = CliRunner().invoke(app, ["benchmark", *arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


@pytest.mark.parametrize("generators", ["ar,ar", "mar,mar", "mar,ar", "ar,mar"])
def test_sampling_is_compared_with_the_uncached_sampler_and_the_ceiling(generators):
    result = run("sample", *TINY, "--generators", generators)
    assert result["seconds_per_step"] == pytest.approx(2 * result["seconds_per_image"])
    assert result["times_faster_than_reference"] == pytest.approx(
        result["reference_seconds_per_image"] / result["seconds_per_image"]
    )
    assert 0 < result["gflop_per_image"] < result["published_gflop_per_image"]
    rate = result["gflop_per_image"] / result["seconds_per_image"]
    assert result["utilisation"] == pytest.approx(rate / result["ceiling_gflops"])


@pytest.mark.parametrize("generators", ["ar,ar", "mar,mar", "mar,ar", "ar,mar"])
def test_the_operations_of_the_levels_sum_to_the_image_s(generators):
    result = run("sample", *TINY, "--generators", generators, "--no-reference")
    upper, lower = generators.split(",")
    names = [f"level 0 (4 → 2, {upper})", f"level 1 (2 → 1, {lower})", "pixels"]
    assert [level["level"] for level in result["levels"]] == names
    assert all(level["seconds_per_image"] > 0 for level in result["levels"])
    operations = sum(level["gflop_per_image"] for level in result["levels"])
    assert operations == pytest.approx(result["gflop_per_image"])


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
def test_levels_that_are_compiled_together_have_one_entry():
    arguments = ["--batch", "2", "--repeats", "1", "--no-reference", "--compile"]
    result = run("sample", *LAYERS, "--generators", "ar,ar", *arguments)
    names = [level["level"] for level in result["levels"]]
    assert names == ["level 0 (4 → 2, ar)", "level 1 (2 → 1, ar) and pixels"]
    operations = sum(level["gflop_per_image"] for level in result["levels"])
    assert operations == pytest.approx(result["gflop_per_image"])


def test_levels_and_warm_up_can_be_left_out():
    arguments = ("--no-reference", "--no-by-level", "--no-warm-up")
    assert "levels" not in run("sample", *TINY, "--generators", "ar,ar", *arguments)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["ar,ar", "mar,mar"])
@pytest.mark.parametrize("mode", ["sample", "train", "likelihood"])
def test_every_mode_gives_its_values(mode, kind, dtype):
    also = ("--no-compile", "--no-reference") if mode == "sample" else ()
    result = run(mode, *TINY, "--generators", kind, "--dtype", dtype, *also)
    assert result["ceiling_gflops"] == result[f"ceiling_gflops_{dtype}"]
    assert result["peak_memory_gb"] > 0.01
    assert "reference_seconds_per_image" not in result


def test_activation_checkpointing_computes_more():
    arguments = ("train", *TINY, "--generators", "ar,ar")
    plain = run(*arguments)["gflop_per_image"]
    assert run(*arguments, "--activation-checkpointing")["gflop_per_image"] > plain
    assert run(*arguments, "--selective-checkpointing")["gflop_per_image"] == plain
    with pytest.raises(FractalError, match="expected one of them: leave one out"):
        run(*arguments, "--selective-checkpointing", "--activation-checkpointing")


@pytest.mark.parametrize(("asked", "compiles"), [("--compile", True), ("--no-compile", False)])
def test_training_compiles_only_with_the_option(monkeypatch, asked, compiles):
    def check_recipe(config: ModelConfig, recipe: TrainingConfig, *rest: object) -> None:
        assert recipe.compile is compiles
        raise FractalError("seen")

    monkeypatch.setattr(module, "training_work", check_recipe)
    with pytest.raises(FractalError, match="seen"):
        run("train", *TINY, "--generators", "ar,ar", asked)


@pytest.mark.parametrize("warm_up", [True, False])
def test_warm_up_runs_are_not_timed(warm_up):
    """Each run takes its seconds from a list. At the end the list is empty."""
    seconds = iter([*([0.2] * 3 if warm_up else []), 0.0, 0.0])
    network, _ = likelihood_work(load_params(SHIPPED).size("digits").model, 1, torch.device("cpu"))
    work = Work(lambda: time.sleep(next(seconds)), flops=1.0, warm_ups=3)
    options = {"batch": 1, "dtype": "float32", "repeats": 2, "reference": False}
    result = measure("likelihood", network, work, warm_up=warm_up, **options)
    assert result.seconds_per_step < 0.1
    assert list(seconds) == []


def test_a_trace_can_be_opened(tmp_path):
    trace = tmp_path / "a trace.json"
    arguments = ("--generators", "ar,ar", "--no-reference", "--profile", str(trace))
    result = run("sample", *TINY, *arguments)
    assert "reference_seconds_per_image" not in result
    names = {event["name"] for event in json.loads(trace.read_text())["traceEvents"]}
    assert "aten::searchsorted" in names


def test_the_operations_of_a_likelihood_are_counted():
    """Takes an image of an AR model, whose operations do not depend on masks."""
    config = load_params(SHIPPED).size("ar-64").model
    small = config.model_copy(
        update={"levels": tuple(lv.model_copy(update={"blocks": 1}) for lv in config.levels)}
    )
    network, work = likelihood_work(small, 1, torch.device("cpu"))
    result = measure(
        "likelihood", network, work, batch=1, dtype="float32", repeats=1, reference=False
    )
    expected = sum(products.forward for products in pass_products(small))
    # A product of one row is computed with two rows (`model/kernels/linear.py`): 0.01 % here.
    assert result.gflop_per_image * 1e9 == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample"], "no model given: name a size"),
        (["sample", "--size", "digits", "--levels", "4,1"], "both --size and --levels given"),
        (["sample", "--levels", "4,1"], "--levels without --widths, --blocks, --heads"),
        (["sample", "--size", "huge"], "size 'huge' is unknown"),
        (
            ["sample", "--size", "mar-64", "--iterations", "1,2,3"],
            "'1,2,3' has 3 numbers, expected 2",
        ),
        (["sample", "--size", "digits", "--guidance", "-1"], "guidance 0 … 1000"),
        (["sample", *TINY, "--generators", "ar"], "generators has length 1 for 3"),
        (["sample", *TINY, "--generators", "ar,gan"], "'ar' or 'mar'"),
    ],
)
def test_impossible_options_are_refused(arguments, message):
    done = CliRunner().invoke(app, ["benchmark", *arguments])
    assert isinstance(done.exception, FractalError)
    assert message in str(done.exception)


def test_the_table_of_training_has_no_values_of_sampling():
    printed = CliRunner().invoke(app, ["benchmark", "train", *TINY, "--generators", "ar,ar"]).stdout
    assert "utilisation" in printed
    assert "median of 1 run" in printed
    assert "uncached" not in printed
    assert "level 1 (2 → 1, ar)" in printed and "optimiser and the rest" in printed


def test_the_table_of_sampling_has_the_levels():
    arguments = ["--generators", "mar,ar", "--no-reference"]
    printed = CliRunner().invoke(app, ["benchmark", "sample", *TINY, *arguments]).stdout
    assert "level 1 (2 → 1, ar)" in printed
