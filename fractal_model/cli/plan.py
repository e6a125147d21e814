"""`fractal plan`: print the costs of training and sampling that `costs.plan` estimates."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from fractal_model.cli.options import ParamsOption
from fractal_model.common.console import show
from fractal_model.common.gpus import GPUS, find_gpu
from fractal_model.common.plurals import count_of
from fractal_model.common.tables import FittedTable
from fractal_model.config.params_source import DEFAULT_SOURCE

if TYPE_CHECKING:
    from fractal_model.costs.plan import Plan
    from fractal_model.costs.training_memory import TrainingMemory


def plan(
    size: Annotated[str, typer.Argument(help="A size of params.yaml, such as mar-l.")],
    gpus: Annotated[
        int | None, typer.Option(help="Number of GPUs. Default: one for each worker of the recipe.")
    ] = None,
    gpu: Annotated[str, typer.Option(help=f"Kind of GPU: {', '.join(GPUS)}.")] = "h100",
    batch_size: Annotated[
        int | None, typer.Option(help="Images per step on all GPUs. Default: the recipe's.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="Number of training images. Default: the data set's.")
    ] = None,
    utilisation: Annotated[
        float | None,
        typer.Option(help="Share of the GPU's peak speed in training. Default: the paper's."),
    ] = None,
    sampling_utilisation: Annotated[
        float | None, typer.Option(help="Share of peak speed in sampling. Default: the paper's.")
    ] = None,
    params: ParamsOption = DEFAULT_SOURCE,
) -> dict[str, object]:
    """Estimate what training and sampling cost: operations, memory, time, disk space.

    Nothing is run. The operations follow from the architecture, and the time from the operations
    and the utilisation of the GPUs. All assumptions are printed below the tables.
    """
    from fractal_model.costs import plan as planning
    from fractal_model.tracking.model_source import read_guide

    settings = params.load()
    named_size = settings.size(size)
    guide = read_guide(named_size.sampling.guide, named_size.model, settings.paths.outputs)
    shares = {"utilisation": utilisation, "sampling_utilisation": sampling_utilisation}
    costs = planning.plan(
        named_size,
        gpu=find_gpu(gpu),
        gpus=named_size.training.workers if gpus is None else gpus,
        splits=planning.dataset_splits(settings, named_size.training.dataset, images),
        batch_size=batch_size,
        guide=None if guide is None else guide.model.config,
        **{name: value for name, value in shares.items() if value is not None},
    )
    for table in (_operations(costs), _paper(costs), _memory(costs), _totals(costs)):
        show(table, "")
    show(*(f"• {note}" for note in _notes(costs)))
    return costs.model_dump(mode="json")


def _operations(costs: Plan) -> FittedTable:
    headings = ("level", "parameters", "forward", "training", "recomputing", "sampling")
    table = FittedTable(f"{costs.size}: parameters, and GFLOPs per image", headings)
    table.add_row("classes", f"{costs.embedding_parameters:,}", *[""] * 4)
    columns = ("forward_flops", "training_flops", "training_flops_checkpointed", "sampling_flops")
    for part in costs.parts:
        numbers = (_giga(getattr(part, name)) for name in columns)
        table.add_row(part.name, f"{part.parameters:,}", *numbers)
    table.add_section()
    sums = (_giga(sum(getattr(part, name) for part in costs.parts)) for name in columns)
    table.add_row("total", f"{costs.parameters:,}", *sums)
    return table


def _paper(costs: Plan) -> FittedTable:
    title = "GFLOPs of a forward pass, counted as the paper counts"
    table = FittedTable(title, ["", "ours", "published"])
    for part in costs.parts:
        table.add_row(part.name, _giga(part.paper_flops), _published(part.published_gflops))
    table.add_section()
    total = sum(part.paper_flops for part in costs.parts)
    table.add_row("total", _giga(total), _published(costs.published_gflops))
    if costs.published_full_sequence_gflops:
        full = _giga(costs.full_sequence_gflops * 1e9)
        table.add_row("as one sequence", full, _published(costs.published_full_sequence_gflops))
    return table


def _memory(costs: Plan) -> FittedTable:
    images = count_of(costs.images_per_gpu, "image")
    title = f"GB on each GPU in training, {images}, {costs.precision}"
    table = FittedTable(title, ["", "plain", "selective", "recomputing"])
    choices = (costs.memory, costs.memory_selective, costs.memory_checkpointed)
    rows = {
        "parameters": "parameters",
        "gradients": "gradients",
        "buckets": "gradients in exchange",
        "optimizer": "optimiser's moments, float32",
        "average": "moving averages of the weights",
        "weight_copies": "weights in bfloat16",
        "logits": "logits, temporary",
        "activations.kept": "activations",
        "activations.recomputed": "one recomputed block",
    }
    for field, name in rows.items():
        table.add_row(name, *(_gigabytes(attrgetter(field)(m)) for m in choices))
    table.add_section()
    table.add_row("total", *(_gigabytes(m.total) for m in choices))
    memory = costs.gpu.memory_gb
    table.add_row(f"{costs.gpu.name} has {memory:g}", *(_verdict(m, memory) for m in choices))
    return table


def _verdict(memory: TrainingMemory, available_gb: float) -> Text:
    if memory.total < available_gb * 1e9:
        return Text("fits", style="green")
    return Text("does not fit", style="red")


def _totals(costs: Plan) -> FittedTable:
    title = f"{costs.size} on {costs.gpus} {costs.gpu.name}"
    table = FittedTable(title, ["", "cost"], texts=(0, 1), headings=False)
    disk = costs.disk
    table.add_row(
        "training",
        f"{count_of(costs.epochs, 'epoch')} × {count_of(costs.images, 'image')} = "
        f"{count_of(costs.steps, 'step')}",
    )
    table.add_row("", f"{_duration(costs.training_days * 24)}, {_hours(costs.gpu_hours)} GPU-hours")
    table.add_row(
        "50,000 samples",
        f"{_duration(costs.sampling_hours)} ({costs.seconds_per_sample:.2g} s per image on a GPU)",
    )
    table.add_row("disk: prepared data", f"at most {_gigabytes(disk.data_at_most)} GB")
    if disk.raw_archives:
        table.add_row("disk: ImageNet's archives", f"{_gigabytes(disk.raw_archives)} GB")
    checkpoints = f"{_gigabytes(disk.checkpoints_kept)} GB, {_gigabytes(disk.checkpoint)} GB each"
    table.add_row("disk: checkpoints", checkpoints)
    return table


_NOTES = (
    "Recomputing means activation checkpointing: it keeps the input of each block and computes the "
    "rest again. Selective checkpointing also keeps the results of matrix products and attention. "
    "(A GPU computes long attention with dropout again; its memory is counted all the same.)",
    "The paper does not count masks, prefix tokens, logits or guiding pixels. It counts 10 "
    "operations for each element of a normalisation. Counted like this, FractalMAR-L's levels and "
    "the 64 × 64 MAR models equal the published figures when rounded. One sequence of all values "
    "is 0.5 % below its figure with MAR blocks and 0.2 % above it with AR blocks. AR models are 1 "
    "to 5 % above their figure, which is published for both kinds together.",
    "Memory excludes the CUDA context (about 1 GB), fragmentation and small temporary tensors.",
    "Prepared data are all splits without compression. PNG needs less. Preparation takes up to a "
    "second copy of a split. While a checkpoint is written, one more lies on disk.",
)


def _notes(costs: Plan) -> list[str]:
    rows = ", ".join(f"{part.rows:,.0f}" for part in costs.parts)
    operations = (
        "Operations are those of matrix products, two per multiply-add, with attention in full. "
        f"Training has the expected number of masked rows: {rows} per image at each level. "
        "Sampling uses the size's settings: guidance doubles the rows in its interval, a MAR level "
        "computes all its positions in each iteration, AR levels and the pixel network keep keys "
        "and values."
    )
    return [_training_note(costs), _sampling_note(costs), operations, *_NOTES]


def _training_note(costs: Plan) -> str:
    from fractal_model.costs.published_costs import TRAINING_UTILISATION, TRAINING_UTILISATION_64

    source = (
        "FractalMAR-L's published 7.6 days on 32 H100 give this share; the 3.5 days of a 64 × 64 "
        f"model give {TRAINING_UTILISATION_64}."
    )
    if costs.utilisation != TRAINING_UTILISATION:
        source = "You gave this share."
    if costs.optimizer_flops:
        source += f" Muon adds {_giga(costs.optimizer_flops)} GFLOPs to a step, on each GPU."
    used = " or ".join(
        {True: "with", "selective": "with selective", False: "without"}[choice]
        for choice in dict.fromkeys(costs.activation_checkpointing)
    )
    return (
        f"Training at {costs.utilisation:g} of {costs.gpu.name}'s dense {costs.precision} "
        f"peak ({costs.gpu.peak(costs.precision) / 1e12:g} TFLOP/s), {used} activation "
        f"checkpointing as in the recipe; {costs.model_flops_utilisation:.3f} without repeated "
        f"products. {source}"
    )


def _sampling_note(costs: Plan) -> str:
    from fractal_model.costs.published_costs import SAMPLING_UTILISATION

    source = (
        "FractalMAR-H's published 1.29 s per image on one H100 PCIe, in mixed precision and "
        "batches of 1,024, give this share."
    )
    if costs.sampling_utilisation != SAMPLING_UTILISATION:
        source = "You gave this share."
    return (
        f"Sampling at {costs.sampling_utilisation:g} of the dense bfloat16 peak "
        f"({costs.gpu.bfloat16_tflops:g} TFLOP/s). {source} Sampling in float32 takes longer."
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
