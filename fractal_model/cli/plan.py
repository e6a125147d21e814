"""`fractal plan`: prints what `costs.plan` computes."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from fractal_model.cli.options import ParamsOption
from fractal_model.common.console import console
from fractal_model.common.tables import FittedTable
from fractal_model.config.params import DEFAULT_FILE, load_params
from fractal_model.costs.gpus import GPUS, gpu_named

if TYPE_CHECKING:
    from fractal_model.costs.plan import Plan
    from fractal_model.costs.training_memory import TrainingMemory


def plan(
    size: Annotated[str, typer.Argument(help="A size of params.yaml, for example mar-l.")],
    gpus: Annotated[
        int | None, typer.Option(help="How many GPUs. Default: the recipe's workers.")
    ] = None,
    gpu: Annotated[str, typer.Option(help=f"{', '.join(GPUS)}.")] = "h100",
    batch_size: Annotated[
        int | None, typer.Option(help="Images a step, over all GPUs. Default: the recipe's.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="Training images. Default: those of the data set.")
    ] = None,
    utilisation: Annotated[
        float | None,
        typer.Option(help="Share of the GPU's peak in training. Default: the published runs'."),
    ] = None,
    sampling_utilisation: Annotated[
        float | None, typer.Option(help="The same in sampling.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    params: ParamsOption = DEFAULT_FILE,
) -> None:
    """What training and sampling a size would cost: operations, memory, time, disk.

    Nothing is run. Operations are counted from the architecture, time is operations over what the
    GPUs reach at the given utilisation; every assumption is printed below the tables.
    """
    from fractal_model.costs import plan as planning

    settings = load_params(params)
    chosen = settings.size(size)
    given = {"utilisation": utilisation, "sampling_utilisation": sampling_utilisation}
    found = planning.plan(
        chosen,
        gpu=gpu_named(gpu),
        gpus=chosen.training.workers if gpus is None else gpus,
        splits=planning.dataset_splits(settings, chosen.training.dataset, images),
        batch_size=batch_size,
        **{name: value for name, value in given.items() if value is not None},
    )
    if json:
        print(found.model_dump_json(indent=2))
        return
    for table in (_operations(found), _paper(found), _memory(found), _totals(found)):
        console.print(table)
        console.print()
    for note in _notes(found):
        console.print(f"• {note}", markup=False)


def _operations(found: Plan) -> FittedTable:
    headings = ("level", "parameters", "forward", "training", "recomputing", "sampling")
    table = FittedTable(f"{found.size}: parameters, and GFLOPs an image", headings)
    table.add_row("classes", f"{found.embedding_parameters:,}", *[""] * 4)
    columns = ("forward_flops", "training_flops", "training_flops_checkpointed", "sampling_flops")
    for part in found.parts:
        numbers = (_giga(getattr(part, name)) for name in columns)
        table.add_row(part.name, f"{part.parameters:,}", *numbers)
    table.add_section()
    sums = (_giga(sum(getattr(part, name) for part in found.parts)) for name in columns)
    table.add_row("total", f"{found.parameters:,}", *sums)
    return table


def _paper(found: Plan) -> FittedTable:
    title = "GFLOPs of a forward pass, counted as the paper counts"
    table = FittedTable(title, ["", "ours", "published"])
    for part in found.parts:
        table.add_row(part.name, _giga(part.paper_flops), _published(part.published_gflops))
    table.add_section()
    total = sum(part.paper_flops for part in found.parts)
    table.add_row("total", _giga(total), _published(found.published_gflops))
    if found.published_full_sequence_gflops:
        full = _giga(found.full_sequence_gflops * 1e9)
        table.add_row("as one sequence", full, _published(found.published_full_sequence_gflops))
    return table


def _memory(found: Plan) -> FittedTable:
    title = f"GB on each GPU in training, {found.images_per_gpu} images, {found.precision}"
    table = FittedTable(title, ["", "plain", "recomputing"])
    both = (found.memory, found.memory_checkpointed)
    rows = {
        "parameters": "parameters",
        "gradients": "gradients",
        "buckets": "gradients being exchanged",
        "optimizer": "AdamW's moments, float32",
        "average": "moving average of the weights",
        "weight_copies": "weights in bfloat16",
        "logits": "logits, temporary",
        "activations.kept": "activations",
        "activations.recomputed": "one block again",
    }
    for field, name in rows.items():
        table.add_row(name, *(_gigabytes(attrgetter(field)(m)) for m in both))
    table.add_section()
    table.add_row("total", *(_gigabytes(m.total) for m in both))
    memory = found.gpu.memory_gb
    table.add_row(f"{found.gpu.name} has {memory:g}", *(_verdict(m, memory) for m in both))
    return table


def _verdict(memory: TrainingMemory, available_gb: float) -> Text:
    if memory.total < available_gb * 1e9:
        return Text("fits", style="green")
    return Text("does not fit", style="red")


def _totals(found: Plan) -> FittedTable:
    title = f"{found.size} on {found.gpus} {found.gpu.name}"
    table = FittedTable(title, ["", "cost"], texts=(0, 1), headings=False)
    disk = found.disk
    table.add_row(
        "training", f"{found.epochs} epochs × {found.images:,} images = {found.steps:,} steps"
    )
    table.add_row("", f"{_duration(found.training_days * 24)}, {_hours(found.gpu_hours)} GPU-hours")
    table.add_row(
        "50,000 samples",
        f"{_duration(found.sampling_hours)} ({found.seconds_per_sample:.2g} s an image on one GPU)",
    )
    table.add_row("disk: prepared data", f"at most {_gigabytes(disk.data_at_most)} GB")
    if disk.raw_archives:
        table.add_row("disk: ImageNet's archives", f"{_gigabytes(disk.raw_archives)} GB")
    kept = f"{_gigabytes(disk.checkpoints_kept)} GB, {_gigabytes(disk.checkpoint)} GB each"
    table.add_row("disk: checkpoints kept", kept)
    return table


_NOTES = (
    "Recomputing: activation checkpointing keeps a block's input and computes the rest again.",
    "The paper counts without masks, prefix tokens, logits and guiding pixels, with 10 operations "
    "an element of each normalisation: FractalMAR-L's levels and the 64 × 64 MAR models then equal "
    "the published figures when rounded, one sequence of all values is near (0.5 % below with MAR "
    "blocks, 0.2 % above with AR blocks), AR models are 1 to 5 % above the one figure published "
    "for both kinds.",
    "Memory leaves out the CUDA context (about 1 GB), fragmentation and small temporaries.",
    "Prepared data: all splits without compression. PNG needs less; building takes up to a second "
    "copy of a split. While a checkpoint is written one more lies on disk.",
)


def _notes(found: Plan) -> list[str]:
    rows = ", ".join(f"{part.rows:,.0f}" for part in found.parts)
    operations = (
        "Operations are matrix products, two a multiply-add, attention in full. Training is "
        f"expected over the masks: {rows} rows an image at each level. Sampling uses the size's "
        "settings: guidance doubles the rows, a MAR level runs all its positions in each "
        "iteration, AR levels and the pixel network keep keys and values."
    )
    return [_training_note(found), _sampling_note(found), operations, *_NOTES]


def _training_note(found: Plan) -> str:
    from fractal_model.costs.published_costs import TRAINING_UTILISATION, TRAINING_UTILISATION_64

    source = (
        "From FractalMAR-L's published 7.6 days on 32 H100; the 3.5 days of a 64 × 64 model "
        f"imply {TRAINING_UTILISATION_64}."
    )
    if found.utilisation != TRAINING_UTILISATION:
        source = "As given."
    used = "with" if found.activation_checkpointing else "without"
    return (
        f"Training at {found.utilisation:g} of {found.gpu.name}'s dense {found.precision} peak "
        f"({found.gpu.peak(found.precision) / 1e12:g} TFLOP/s), {used} activation checkpointing as "
        f"in the recipe; without repeated products {found.model_flops_utilisation:.3f}. {source}"
    )


def _sampling_note(found: Plan) -> str:
    from fractal_model.costs.published_costs import SAMPLING_UTILISATION

    source = (
        "From FractalMAR-H's published 1.29 s an image on one H100 PCIe, in mixed precision and "
        "batches of 1,024."
    )
    if found.sampling_utilisation != SAMPLING_UTILISATION:
        source = "As given."
    return (
        f"Sampling at {found.sampling_utilisation:g} of the dense bfloat16 peak "
        f"({found.gpu.bfloat16_tflops:g} TFLOP/s). {source} The sampler in float32, without "
        f"autocast, takes longer."
    )


def _giga(flops: float) -> str:
    return f"{flops / 1e9:,.3g}" if flops < 1e11 else f"{flops / 1e9:,.0f}"


def _published(gflops: float | None) -> str:
    return "" if gflops is None else f"{gflops:,g}"


def _gigabytes(number: float) -> str:
    return f"{number / 1e9:,.2f}" if number >= 1e8 else f"{number / 1e9:.2g}"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def _duration(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.2g} minutes"
