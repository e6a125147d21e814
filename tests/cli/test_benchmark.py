"""`fractal benchmark`: what it prints, what it counts, and what it refuses."""

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
    """The machine's ceiling is measured once for all these tests: it takes longer than they do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ceiling_gflops", cache(module.ceiling_gflops))
        yield


def run(*arguments: str) -> dict:
    found = CliRunner().invoke(app, ["benchmark", *arguments, "--json"], catch_exceptions=False)
    assert found.exit_code == 0
    return json.loads(found.stdout)


@pytest.mark.parametrize("generators", ["ar,ar", "mar,mar", "mar,ar", "ar,mar"])
def test_sampling_stands_beside_the_uncached_path_and_the_ceiling(generators):
    found = run("sample", *TINY, "--generators", generators)
    assert found["seconds_per_step"] == pytest.approx(2 * found["seconds_per_image"])
    assert found["times_faster_than_reference"] == pytest.approx(
        found["reference_seconds_per_image"] / found["seconds_per_image"]
    )
    assert 0 < found["gflop_per_image"] < found["published_gflop_per_image"]
    rate = found["gflop_per_image"] / found["seconds_per_image"]
    assert found["utilisation"] == pytest.approx(rate / found["ceiling_gflops"])


@pytest.mark.parametrize("generators", ["ar,ar", "mar,mar", "mar,ar", "ar,mar"])
def test_levels_share_out_the_time_and_the_operations(generators):
    found = run("sample", *TINY, "--generators", generators, "--no-reference")
    upper, lower = generators.split(",")
    names = [f"level 0 (4 → 2, {upper})", f"level 1 (2 → 1, {lower})", "pixels"]
    assert [level["level"] for level in found["levels"]] == names
    assert all(level["seconds_per_image"] > 0 for level in found["levels"])
    operations = sum(level["gflop_per_image"] for level in found["levels"])
    assert operations == pytest.approx(found["gflop_per_image"])


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
def test_what_is_compiled_together_is_one_entry():
    arguments = ["--batch", "2", "--repeats", "1", "--no-reference", "--compile"]
    found = run("sample", *LAYERS, "--generators", "ar,ar", *arguments)
    names = [level["level"] for level in found["levels"]]
    assert names == ["level 0 (4 → 2, ar)", "level 1 (2 → 1, ar) and pixels"]
    operations = sum(level["gflop_per_image"] for level in found["levels"])
    assert operations == pytest.approx(found["gflop_per_image"])


def test_without_levels_and_without_warming_up():
    arguments = ("--no-reference", "--no-by-level", "--no-warm-up")
    assert "levels" not in run("sample", *TINY, "--generators", "ar,ar", *arguments)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["ar,ar", "mar,mar"])
@pytest.mark.parametrize("mode", ["sample", "train", "likelihood"])
def test_every_mode(mode, kind, dtype):
    also = ("--no-compile", "--no-reference") if mode == "sample" else ()
    found = run(mode, *TINY, "--generators", kind, "--dtype", dtype, *also)
    assert found["ceiling_gflops"] == found[f"ceiling_gflops_{dtype}"]
    assert found["peak_memory_gb"] > 0.01
    assert "reference_seconds_per_image" not in found


def test_activation_checkpointing_computes_more():
    arguments = ("train", *TINY, "--generators", "ar,ar")
    plain = run(*arguments)["gflop_per_image"]
    assert run(*arguments, "--activation-checkpointing")["gflop_per_image"] > plain


@pytest.mark.parametrize(("asked", "compiles"), [("--compile", True), ("--no-compile", False)])
def test_training_compiles_where_it_is_asked_to(monkeypatch, asked, compiles):
    def look(config: ModelConfig, recipe: TrainingConfig, *rest: object) -> None:
        assert recipe.compile is compiles
        raise FractalError("seen")

    monkeypatch.setattr(module, "training_work", look)
    with pytest.raises(FractalError, match="seen"):
        run("train", *TINY, "--generators", "ar,ar", asked)


@pytest.mark.parametrize("warm_up", [True, False])
def test_what_warms_up_is_not_timed(warm_up):
    """Each run takes its seconds from a list, which is then used up."""
    seconds = iter([*([0.2] * 3 if warm_up else []), 0.0, 0.0])
    network, _ = likelihood_work(load_params(SHIPPED).size("digits").model, 1, torch.device("cpu"))
    work = Work(lambda: time.sleep(next(seconds)), flops=1.0, warm_ups=3)
    given = {"batch": 1, "dtype": "float32", "repeats": 2, "reference": False}
    found = measure("likelihood", network, work, warm_up=warm_up, **given)
    assert found.seconds_per_step < 0.1
    assert list(seconds) == []


def test_a_trace_can_be_opened(tmp_path):
    trace = tmp_path / "a trace.json"
    arguments = ("--generators", "ar,ar", "--no-reference", "--profile", str(trace))
    found = run("sample", *TINY, *arguments)
    assert "reference_seconds_per_image" not in found
    names = {event["name"] for event in json.loads(trace.read_text())["traceEvents"]}
    assert "aten::searchsorted" in names


def test_the_operations_of_a_likelihood_are_those_that_ran():
    """One image of an AR model: the count does not depend on masks."""
    config = load_params(SHIPPED).size("ar-64").model
    small = config.model_copy(
        update={"levels": tuple(lv.model_copy(update={"blocks": 1}) for lv in config.levels)}
    )
    network, work = likelihood_work(small, 1, torch.device("cpu"))
    found = measure(
        "likelihood", network, work, batch=1, dtype="float32", repeats=1, reference=False
    )
    expected = sum(products.forward for products in pass_products(small))
    # A single row of a product is computed as two (`model/kernels/linear.py`): 0.01 % here.
    assert found.gflop_per_image * 1e9 == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sample"], "no model given: name a size"),
        (["sample", "--size", "digits", "--levels", "4,1"], "both --size and --levels given"),
        (["sample", "--levels", "4,1"], "--levels without --widths, --blocks, --heads"),
        (["sample", "--size", "huge"], "size 'huge' is unknown"),
        (
            ["sample", "--size", "mar-64", "--iterations", "1,2,3"],
            "found 3 in '1,2,3', expected 2 numbers",
        ),
        (["sample", "--size", "digits", "--guidance", "-1"], "guidance 0 … 1000"),
        (["sample", *TINY, "--generators", "ar"], "generators has length 1 for 3"),
        (["sample", *TINY, "--generators", "ar,gan"], "'ar' or 'mar'"),
    ],
)
def test_what_cannot_be_timed_is_refused(arguments, says):
    found = CliRunner().invoke(app, ["benchmark", *arguments])
    assert isinstance(found.exception, FractalError)
    assert says in str(found.exception)


def test_the_table_has_what_the_mode_has():
    shown = CliRunner().invoke(app, ["benchmark", "train", *TINY, "--generators", "ar,ar"]).stdout
    assert "utilisation" in shown
    assert "median of 1 run" in shown
    assert "uncached" not in shown
    assert "level" not in shown


def test_the_table_of_sampling_has_the_levels():
    arguments = ["--generators", "mar,ar", "--no-reference"]
    shown = CliRunner().invoke(app, ["benchmark", "sample", *TINY, *arguments]).stdout
    assert "level 1 (2 → 1, ar)" in shown
