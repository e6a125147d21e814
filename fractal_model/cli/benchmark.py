"""`fractal benchmark`: measure how fast a model samples and trains on this machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import ValidationError

from fractal_model.cli.options import ParamsOption, path_option
from fractal_model.cli.sampling_options import parse_iterations
from fractal_model.common.compiler import has_compiler
from fractal_model.common.console import say, show
from fractal_model.common.errors import FractalError
from fractal_model.common.files import require_writable_file
from fractal_model.common.plurals import count_of
from fractal_model.common.tables import FittedTable
from fractal_model.common.validation import describe
from fractal_model.config.architecture import Architecture
from fractal_model.config.model import ModelConfig
from fractal_model.config.params import Params
from fractal_model.config.params_source import DEFAULT_SOURCE
from fractal_model.config.sampling import SamplingConfig

if TYPE_CHECKING:
    from fractal_model.costs.benchmark import Measurement
    from fractal_model.costs.benchmark_levels import LevelCost

CUSTOM_GUIDANCE = 3.0
CUSTOM_ITERATIONS = (64, 16)
"""Default iterations of level 0 and of each level below, for a model that --levels describes. A
level with fewer sub-patches has one iteration for each of them."""
CUSTOM_CLASSES = 1000


def benchmark(
    mode: Annotated[Literal["sample", "train", "likelihood"], typer.Argument(help="What to time.")],
    size: Annotated[
        str | None,
        typer.Option(help="A size of params.yaml, instead of the five options below."),
    ] = None,
    levels: Annotated[
        str | None, typer.Option(help="Patch sizes from the image to the pixel, such as 64,4,1.")
    ] = None,
    widths: Annotated[
        str | None, typer.Option(help="Widths of levels and pixel network, such as 256,128,64.")
    ] = None,
    blocks: Annotated[
        str | None, typer.Option(help="Blocks of levels and pixel network, such as 6,3,2.")
    ] = None,
    heads: Annotated[
        str | None, typer.Option(help="Heads of levels and pixel network, such as 4,4,4.")
    ] = None,
    generators: Annotated[
        str | None, typer.Option(help="Generator of each level, ar or mar, such as mar,mar.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Images per batch.")] = 8,
    guidance: Annotated[
        float | None,
        typer.Option(help="Guidance; 1 switches it off. Default: the size's, or 3 without --size."),
    ] = None,
    iterations: Annotated[
        str | None,
        typer.Option(
            help="Iterations of each level. Default: the size's, or 64,16,16 without --size."
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(metavar="TYPE", help="float32, or bfloat16 with weights in float32."),
    ] = "float32",
    activation_checkpointing: Annotated[
        bool, typer.Option("--activation-checkpointing", help="Recompute activations in training.")
    ] = False,
    selective: Annotated[
        bool,
        typer.Option(
            "--selective-checkpointing",
            help="Recompute activations in training, except matrix products and attention.",
        ),
    ] = False,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Use torch.compile. Default: only in sampling, if there is a C++ compiler. A "
            "likelihood pass never uses it.",
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, metavar="N", help="Timed runs; their median is the result.")
    ] = 3,
    reference: Annotated[
        bool, typer.Option(help="Also time the slow sampler without caches, once.")
    ] = True,
    by_level: Annotated[
        bool,
        typer.Option(
            help="Also measure the time of each level in one more run; not of a likelihood."
        ),
    ] = True,
    warm_up: Annotated[
        bool, typer.Option(help="Compute once or twice without timing before the timed repeats.")
    ] = True,
    profile: Annotated[
        Path | None,
        path_option("A file for a trace of one more step, for chrome://tracing or Perfetto."),
    ] = None,
    params: ParamsOption = DEFAULT_SOURCE,
) -> dict[str, object]:
    """Time sampling, a training step or a likelihood pass on this machine.

    The model has random weights. The result includes the utilisation: the measured speed divided by
    the ceiling. The ceiling is the speed of the machine's fastest matrix product.
    """
    from fractal_model.common.devices import compute_device
    from fractal_model.costs import benchmark
    from fractal_model.generation.request import change_sampling

    if activation_checkpointing and selective:
        raise FractalError(
            "--activation-checkpointing and --selective-checkpointing given, expected one of them: "
            "leave one out"
        )
    if profile is not None:
        require_writable_file(profile)
    settings = params.load()
    layers = {"levels": levels, "widths": widths, "blocks": blocks, "heads": heads}
    model, base = _model_and_sampling(settings, size, {**layers, "generators": generators})
    device = compute_device()
    if mode == "sample":
        sampling = change_sampling(
            base, model, guidance=guidance, iterations=parse_iterations(iterations, model)
        )
        compiles = has_compiler() if compiled is None else compiled
        sampling = sampling.model_copy(update={"compile": compiles})
        network, work = benchmark.sampling_work(model, sampling, batch, device)
    elif mode == "train":
        recipe = settings.training[size or next(iter(settings.training))].model_copy(
            update={
                "precision": dtype,
                "activation_checkpointing": "selective" if selective else activation_checkpointing,
                "compile": bool(compiled),
            }
        )
        network, work = benchmark.training_work(model, recipe, batch, device)
    else:
        network, work = benchmark.likelihood_work(model, batch, device)
    measurement = benchmark.measure(
        mode,
        network,
        work,
        batch=batch,
        dtype=dtype,
        repeats=repeats,
        reference=reference,
        by_level=by_level,
        warm_up=warm_up,
        trace=profile,
    )
    _print(measurement)
    if profile is not None:
        say(f"trace: {profile} (open it in chrome://tracing or https://ui.perfetto.dev)")
    return measurement.as_json()


def _model_and_sampling(
    settings: Params, size: str | None, layers: dict[str, str | None]
) -> tuple[ModelConfig, SamplingConfig]:
    options = [f"--{name}" for name, text in layers.items() if text]
    if (size is not None) == bool(options):
        raise FractalError(
            f"{'both --size and ' + options[0] if options else 'no model'} given: name a size of "
            f"params.yaml ({', '.join(settings.models)}), or give --levels, --widths, --blocks, "
            f"--heads and --generators"
        )
    if size is not None:
        named = settings.size(size)
        return named.model, named.sampling
    if missing := [f"--{name}" for name, text in layers.items() if not text]:
        raise FractalError(f"{options[0]} without {', '.join(missing)}: give all five options")
    model = _custom_model(layers)
    first, below = CUSTOM_ITERATIONS
    steps = [min(first if i == 0 else below, lv.tokens) for i, lv in enumerate(model.levels)]
    return model, SamplingConfig(guidance=CUSTOM_GUIDANCE, iterations=tuple(steps))


def _custom_model(layers: dict[str, str | None]) -> ModelConfig:
    """Build the configuration of the model that the options --levels, --widths, --blocks, --heads
    and --generators describe; `layers` has the text of each option."""
    lists = {name: re.split(r"\s*,\s*", (text or "").strip()) for name, text in layers.items()}
    generators = lists["generators"]
    # A MAR level below an AR level reads only one condition.
    takes_five = "ar" not in generators or "mar" not in generators[generators.index("ar") :]
    lists["patch_sizes"] = lists.pop("levels")
    try:
        entry = {**lists, "num_classes": CUSTOM_CLASSES, "conditions": 5 if takes_five else 1}
        return Architecture.model_validate(entry).to_model()
    except ValidationError as error:
        raise FractalError(describe(error, Architecture)) from error


def _print(result: Measurement) -> None:
    title = f"{result.mode}, batch {result.batch}, {result.dtype}"
    table = FittedTable(title, ["quantity", "value"])
    rows = {
        "seconds per image": f"{result.seconds_per_image:.3f}",
        "seconds per batch": f"{result.seconds_per_step:.3f}",
        "GFLOP per image": f"{result.gflop_per_image:,.3g}",
        "GFLOP per image, published sampler": _format(result.published_gflop_per_image, ",.3g"),
        "ceiling, GFLOP/s": f"{result.ceiling_gflops:,.0f}",
        "utilisation": f"{result.utilisation:.1%}",
        "peak memory, GB": f"{result.peak_memory_gb:.2f}",
        "uncached sampler, seconds per image": _format(result.reference_seconds_per_image, ".3f"),
        "times faster than uncached": _format(result.times_faster_than_reference, ".1f"),
    }
    for quantity, value in rows.items():
        if value is not None:
            table.add_row(quantity, value)
    show(table)
    if result.levels is not None:
        show(_level_table(result, result.levels))
    threads, runs = count_of(result.threads, "thread"), count_of(result.repeats, "run")
    say(f"{result.device}, {threads}, median of {runs}")


def _level_table(result: Measurement, levels: Sequence[LevelCost]) -> FittedTable:
    headings = ["level", "seconds", "share", "GFLOP", "utilisation"]
    table = FittedTable("one image, by level", headings)
    total = sum(level.seconds_per_image for level in levels)
    for level in levels:
        seconds, gflop = level.seconds_per_image, level.gflop_per_image
        table.add_row(
            level.level,
            f"{seconds:.3f}",
            f"{seconds / total:.0%}",
            f"{gflop:,.3g}",
            f"{gflop / seconds / result.ceiling_gflops:.1%}",
        )
    return table


def _format(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)
