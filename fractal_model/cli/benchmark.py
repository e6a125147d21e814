"""`fractal benchmark`: how fast a model samples, trains and measures on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import ValidationError

from fractal_model.cli.options import JsonOption, ParamsOption, path
from fractal_model.cli.sampling_options import changed_sampling
from fractal_model.common.compiler import has_compiler
from fractal_model.common.console import console, only_result_on_stdout, say
from fractal_model.common.errors import FractalError
from fractal_model.common.files import require_writable_file
from fractal_model.common.tables import FittedTable
from fractal_model.common.validation import describe
from fractal_model.config.architecture import Architecture
from fractal_model.config.model import ModelConfig
from fractal_model.config.params import DEFAULT_FILE, Params, load_params
from fractal_model.config.sampling import SamplingConfig

if TYPE_CHECKING:
    from fractal_model.costs.benchmark import Measurement
    from fractal_model.costs.benchmark_levels import LevelCost

OWN_GUIDANCE = 3.0
OWN_ITERATIONS = (64, 16)
"""Of a model that is no size of params.yaml: the first level's, and those below; at most one a
sub-patch."""
OWN_CLASSES = 1000


def benchmark(
    mode: Annotated[Literal["sample", "train", "likelihood"], typer.Argument(help="What to time.")],
    size: Annotated[
        str | None, typer.Option(help="A size of params.yaml; or give the layers below.")
    ] = None,
    levels: Annotated[
        str | None, typer.Option(help="Patch sizes from the image to the pixel, as 64,4,1.")
    ] = None,
    widths: Annotated[
        str | None,
        typer.Option(help="One for each of them, the last for the pixel network, as 256,128,64."),
    ] = None,
    blocks: Annotated[str | None, typer.Option(help="The same, as 6,3,2.")] = None,
    heads: Annotated[str | None, typer.Option(help="The same, as 4,4,4.")] = None,
    generators: Annotated[
        str | None, typer.Option(help="ar or mar for each level but the pixel, as mar,mar.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 8,
    guidance: Annotated[
        float | None, typer.Option(help="Default: the size's, or 3; 1 is none.")
    ] = None,
    iterations: Annotated[
        str | None,
        typer.Option(help="Of each level, as 64,16. Default: the size's, or 64, then 16."),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(help="bfloat16: autocast; weights stay float32."),
    ] = "float32",
    activation_checkpointing: Annotated[
        bool, typer.Option("--activation-checkpointing", help="In training, at every level.")
    ] = False,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="torch.compile: in sampling for AR levels, and on a CPU the pixels below a MAR "
            "level, by default where a C++ compiler is; in training for the blocks, "
            "by default not; a likelihood never.",
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs, of which the median counts.")] = 3,
    reference: Annotated[
        bool, typer.Option(help="Also time the sampler without caches, once; it is slow.")
    ] = True,
    by_level: Annotated[
        bool, typer.Option(help="Also measure what of sampling each level takes, in one more run.")
    ] = True,
    warm_up: Annotated[
        bool, typer.Option(help="Begin with a run that does not count, outside sampling two.")
    ] = True,
    profile: Annotated[
        Path | None,
        typer.Option(
            parser=path, help="Write a trace of one step there, for chrome://tracing or Perfetto."
        ),
    ] = None,
    as_json: JsonOption = False,
    params: ParamsOption = DEFAULT_FILE,
) -> None:
    """Time sampling, a training step or a likelihood pass of a model with random weights.

    Beside each time: what share it is of the fastest matrix product of this machine, measured in
    the same process.
    """
    from fractal_model.common.memory import compute_device
    from fractal_model.costs import benchmark

    if profile is not None:
        require_writable_file(profile)
    settings = load_params(params)
    own = {"levels": levels, "widths": widths, "blocks": blocks, "heads": heads}
    model, base = _model_and_sampling(settings, size, {**own, "generators": generators})
    device = compute_device()
    with only_result_on_stdout(as_json):
        if mode == "sample":
            sampling = changed_sampling(base, model, guidance=guidance, iterations=iterations)
            compiles = has_compiler() if compiled is None else compiled
            sampling = sampling.model_copy(update={"compile": compiles})
            network, work = benchmark.sampling_work(model, sampling, batch, device)
        elif mode == "train":
            recipe = settings.training[size or next(iter(settings.training))].model_copy(
                update={
                    "precision": dtype,
                    "activation_checkpointing": activation_checkpointing,
                    "compile": bool(compiled),
                }
            )
            network, work = benchmark.training_work(model, recipe, batch, device)
        else:
            network, work = benchmark.likelihood_work(model, batch, device)
        found = benchmark.measure(
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
    if as_json:
        print(json.dumps(found.as_json(), indent=1, allow_nan=False))
    else:
        _print(found)
        if profile is not None:
            say(f"trace: {profile} (open it in chrome://tracing or https://ui.perfetto.dev)")


def _model_and_sampling(
    settings: Params, size: str | None, own: dict[str, str | None]
) -> tuple[ModelConfig, SamplingConfig]:
    given = [f"--{name}" for name, text in own.items() if text]
    if (size is not None) == bool(given):
        raise FractalError(
            f"{'both --size and ' + given[0] if given else 'no model'} given: name a size of "
            f"params.yaml ({', '.join(settings.models)}), or give --levels, --widths, --blocks, "
            f"--heads and --generators"
        )
    if size is not None:
        chosen = settings.size(size)
        return chosen.model, chosen.sampling
    if missing := [f"--{name}" for name, text in own.items() if not text]:
        raise FractalError(f"{given[0]} without {', '.join(missing)}: the layers need all five")
    model = _own_model(own)
    first, below = OWN_ITERATIONS
    steps = [min(first if i == 0 else below, lv.tokens) for i, lv in enumerate(model.levels)]
    return model, SamplingConfig(guidance=OWN_GUIDANCE, iterations=tuple(steps))


def _own_model(own: dict[str, str | None]) -> ModelConfig:
    lists = {name: [part.strip() for part in (text or "").split(",")] for name, text in own.items()}
    masked = lists["generators"]
    five = "ar" not in masked or "mar" not in masked[masked.index("ar") :]
    lists["patch_sizes"] = lists.pop("levels")
    try:
        content = {**lists, "num_classes": OWN_CLASSES, "conditions": 5 if five else 1}
        return Architecture.model_validate(content).to_model()
    except ValidationError as error:
        raise FractalError(describe(error, Architecture)) from error


def _print(found: Measurement) -> None:
    title = f"{found.mode}, batch {found.batch}, {found.dtype}"
    table = FittedTable(title, ["what", "value"])
    rows = {
        "seconds an image": f"{found.seconds_per_image:.3f}",
        "seconds a batch": f"{found.seconds_per_step:.3f}",
        "GFLOP an image": f"{found.gflop_per_image:,.3g}",
        "published GFLOP an image": _if_there(found.published_gflop_per_image, ",.3g"),
        "ceiling, GFLOP/s": f"{found.ceiling_gflops:,.0f}",
        "utilisation": f"{found.utilisation:.1%}",
        "peak memory, GB": f"{found.peak_memory_gb:.2f}",
        "uncached, seconds an image": _if_there(found.reference_seconds_per_image, ".3f"),
        "times faster than uncached": _if_there(found.times_faster_than_reference, ".1f"),
    }
    for what, value in rows.items():
        if value is not None:
            table.add_row(what, value)
    console.print(table)
    if found.levels is not None:
        console.print(_by_level(found, found.levels))
    say(f"{found.device}, {found.threads} threads, median of {found.repeats} runs")


def _by_level(found: Measurement, levels: Sequence[LevelCost]) -> FittedTable:
    headings = ["level", "seconds", "share", "GFLOP", "utilisation"]
    table = FittedTable("an image by level, in one more run", headings)
    total = sum(level.seconds_per_image for level in levels)
    for level in levels:
        seconds, gflop = level.seconds_per_image, level.gflop_per_image
        table.add_row(
            level.level,
            f"{seconds:.3f}",
            f"{seconds / total:.0%}",
            f"{gflop:,.3g}",
            f"{gflop / seconds / found.ceiling_gflops:.1%}",
        )
    return table


def _if_there(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)
