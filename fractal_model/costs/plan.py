"""Estimate what training and sampling a size cost: operations, memory, time and disk space.

Decided here: time is operations / (GPUs × peak × utilisation). The operations include those that
activation checkpointing repeats, so training without it takes less time here.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch

from fractal_model.common.errors import FractalError
from fractal_model.common.gpus import Gpu
from fractal_model.common.strict import StrictModel
from fractal_model.config.data import IMAGENET_SIDES, digits_split_sizes
from fractal_model.config.model import ModelConfig
from fractal_model.config.params import Params, Size
from fractal_model.config.training import (
    CHECKPOINTING,
    LARGEST_NUMBER,
    MOST_WORKERS,
    Checkpointing,
)
from fractal_model.costs import published_costs
from fractal_model.costs.flops import (
    executed_training_flops,
    optimizer_flops,
    pass_products,
    sampling_flops,
    training_flops,
)
from fractal_model.costs.shapes import rows_per_image, training_shares
from fractal_model.costs.training_memory import (
    FLOAT32,
    TrainingMemory,
    optimizer_bytes,
    training_memory,
)
from fractal_model.data.holdout import remaining_images
from fractal_model.data.manifest import MANIFEST_NAME, read_manifest
from fractal_model.data.object_store import is_remote
from fractal_model.model.fractal import FractalModel

SAMPLES = 50_000
"""Number of samples of the published evaluation."""
_IMAGENET = {"train": 1_281_167, "validation": 50_000}
RAW_ARCHIVES_BYTES = 144.1e9
"""Size of ImageNet's two official archives: train 137.8 GB, validation 6.3 GB."""
DAY, HOUR = 86_400, 3_600


class PartCost(StrictModel):
    """Costs of a level or of the pixel network. Operations (`…flops`) are per image."""

    name: str
    parameters: int
    rows: float
    """Expected number of rows per image in training, where the masks are random."""
    forward_flops: float
    """Operations of a forward pass over all sub-patches, prefix tokens and logits included."""
    paper_flops: float
    """Operations of a forward pass, counted as the paper counts them."""
    published_gflops: float | None
    training_flops: float
    training_flops_checkpointed: float
    sampling_flops: float


class Disk(StrictModel):
    """Disk space in bytes."""

    data_at_most: float
    """Upper limit for the prepared images: their size without compression. PNG needs less."""
    raw_archives: float
    checkpoint: float
    """Bytes of one checkpoint: weights, their moving averages, the optimiser's moments, all in
    float32."""
    checkpoints_kept: float


class Plan(StrictModel):
    """The estimate for a size. Each time has its unit in its name."""

    size: str
    gpu: Gpu
    gpus: int
    dataset: str
    images: int
    epochs: int
    batch_size: int
    images_per_gpu: int
    """Number of images that a GPU computes at a time in training."""
    steps: int
    precision: Literal["float32", "bfloat16"]
    activation_checkpointing: tuple[Checkpointing, ...]
    """The recipe's choice for each level and the pixel network."""
    utilisation: float
    sampling_utilisation: float
    parts: tuple[PartCost, ...]
    embedding_parameters: int
    parameters: int
    published_gflops: float | None
    full_sequence_gflops: float
    published_full_sequence_gflops: float | None
    memory: TrainingMemory
    memory_selective: TrainingMemory
    """Memory with selective activation checkpointing."""
    memory_checkpointed: TrainingMemory
    optimizer_flops: float
    """Operations of the optimiser's matrix products in one step, which each GPU computes in
    bfloat16; 0 with AdamW."""
    training_days: float
    gpu_hours: float
    model_flops_utilisation: float
    """Utilisation if the products that activation checkpointing repeats are not counted."""
    disk: Disk
    seconds_per_sample: float
    """Seconds that one GPU needs for a sample, on average."""
    sampling_hours: float
    """Hours that all GPUs together need for `SAMPLES` samples."""


MOST_IMAGES = 10**12


def plan(
    size: Size,
    *,
    gpu: Gpu,
    gpus: int,
    splits: dict[str, int],
    batch_size: int | None = None,
    utilisation: float = published_costs.TRAINING_UTILISATION,
    sampling_utilisation: float = published_costs.SAMPLING_UTILISATION,
    guide: ModelConfig | None = None,
) -> Plan:
    """Estimate the costs of a size's recipe and sampling settings on `gpus` GPUs of the kind `gpu`.

    `splits` has the number of images by split, always with `train`. `batch_size` replaces that of
    the recipe. `guide` is the model that guides the sampling, if there is one. FractalError: a
    number is out of range, or the batch does not divide by `gpus`.
    """
    recipe = size.training
    batch = recipe.batch_size if batch_size is None else batch_size
    _require_valid(gpus, batch, utilisation, sampling_utilisation)
    at_a_time = min(batch // gpus, recipe.images_per_worker)
    parts, embeddings, weights = _parts(size, guide)
    parameters = embeddings + sum(p.parameters for p in parts)
    memory, memory_selective, memory_checkpointed = (
        training_memory(
            size.model,
            parameters=parameters,
            weights=weights,
            images=at_a_time,
            gpus=gpus,
            precision=recipe.precision,
            averages=len(recipe.ema_decays),
            activation_checkpointing=choice,
            optimizer=recipe.optimizer,
            mask_ratio=recipe.mask_ratio,
        )
        for choice in CHECKPOINTING
    )
    plain = sum(p.training_flops for p in parts)
    executed = sum(executed_training_flops(size.model, recipe))
    training_images = remaining_images(splits["train"], recipe.holdout)
    images = recipe.epochs * training_images
    steps, update = math.ceil(images / batch), optimizer_flops(size.model, recipe.optimizer)
    seconds = images * executed / (gpus * gpu.peak(recipe.precision) * utilisation)
    seconds += steps * update / (gpu.peak("bfloat16") * utilisation)
    sample = sum(p.sampling_flops for p in parts) / (gpu.peak("bfloat16") * sampling_utilisation)
    return Plan(
        size=size.name,
        gpu=gpu,
        gpus=gpus,
        dataset=recipe.dataset,
        images=training_images,
        epochs=recipe.epochs,
        batch_size=batch,
        images_per_gpu=at_a_time,
        steps=steps,
        precision=recipe.precision,
        activation_checkpointing=recipe.checkpointing_by_level(len(parts) - 1),
        utilisation=utilisation,
        sampling_utilisation=sampling_utilisation,
        parts=parts,
        embedding_parameters=embeddings,
        parameters=parameters,
        published_gflops=published_costs.TOTAL_GFLOPS.get(
            size.name, sum(published_costs.LEVEL_GFLOPS.get(size.name, ())) or None
        ),
        full_sequence_gflops=published_costs.full_sequence_flops(size.model) / 1e9,
        published_full_sequence_gflops=published_costs.FULL_SEQUENCE_GFLOPS
        if size.name in published_costs.TOTAL_GFLOPS
        else None,
        memory=memory,
        memory_selective=memory_selective,
        memory_checkpointed=memory_checkpointed,
        optimizer_flops=update,
        training_days=seconds / DAY,
        gpu_hours=seconds * gpus / HOUR,
        model_flops_utilisation=utilisation * plain / executed,
        disk=_disk(size, parameters, splits),
        seconds_per_sample=sample,
        sampling_hours=SAMPLES * sample / gpus / HOUR,
    )


def dataset_splits(params: Params, dataset: str, images: int | None = None) -> dict[str, int]:
    """Return the number of images by split. If `images` is given, it is the number for training,
    and there is no other split. FractalError: `images` is out of range, or it is None and the size
    of the data set is unknown."""
    if images is not None:
        if not 1 <= images <= MOST_IMAGES:
            raise FractalError(f"the number of images is {images}, expected 1 … {MOST_IMAGES:,}")
        return {"train": images}
    folder = params.dataset_folder(dataset)
    if is_remote(folder) or (Path(folder) / MANIFEST_NAME).is_file():
        splits = read_manifest(folder).splits
        return {name: record.images for name, record in splits.items()}
    if dataset == "digits":
        return digits_split_sizes(params.datasets.digits.validation_images)
    if dataset not in IMAGENET_SIDES:
        raise FractalError(
            f"the number of images of the data set {dataset!r} is unknown: it is not prepared in "
            f"{params.paths.data}; prepare it, or give the number",
            setting="images",
        )
    return _IMAGENET


def _require_valid(gpus: int, batch: int, *utilisations: float) -> None:
    if not 1 <= gpus <= MOST_WORKERS:
        raise FractalError(f"gpus is {gpus}, expected 1 … {MOST_WORKERS:,}")
    if not 1 <= batch <= LARGEST_NUMBER:
        raise FractalError(f"batch_size is {batch}, expected 1 … {LARGEST_NUMBER:,}")
    if batch % gpus:
        divisors = [n for n in range(1, min(batch, 2 * gpus) + 1) if batch % n == 0]
        allowed = ", ".join(str(n) for n in divisors[-4:])
        raise FractalError(
            f"batch_size {batch} does not divide by {gpus} GPUs: choose another batch size, or a "
            f"number of GPUs that divides it, such as {allowed}"
        )
    for share in utilisations:
        if not 0 < share <= 1:
            raise FractalError(
                f"utilisation {share} is out of range: give a share above 0, at most 1"
            )


def _parts(size: Size, guide: ModelConfig | None) -> tuple[tuple[PartCost, ...], int, int]:
    """Return three things: the costs of each level and of the pixel network (those of sampling
    include the guide's), the number of parameters in class embeddings, and the number of weights in
    matrices of linear layers."""
    model, shares = size.model, training_shares(size.model, size.training.mask_ratio)
    with torch.device("meta"):  # The real modules, without memory for their weights.
        network = FractalModel(model)
    counts = [_elements(part.parameters()) for part in (*network.levels, network.pixel)]
    linear = (part for part in network.modules() if isinstance(part, torch.nn.Linear))
    names = (f"{level.patch_size} → {level.sub_patch_size} px" for level in model.levels)
    # A user's size with other levels can have the name of a published one.
    published: Sequence[float | None] = published_costs.LEVEL_GFLOPS.get(size.name, ())
    if len(published) != len(counts):
        published = (None,) * len(counts)
    columns: dict[str, Sequence[object]] = {
        "name": (*names, "pixel network"),
        "parameters": counts,
        "rows": rows_per_image(model, shares),
        "forward_flops": [products.forward for products in pass_products(model)],
        "paper_flops": published_costs.paper_flops(model),
        "published_gflops": published,
        "training_flops": training_flops(model, shares, activation_checkpointing=False),
        "training_flops_checkpointed": training_flops(model, shares, activation_checkpointing=True),
        "sampling_flops": sampling_flops(model, size.sampling, guide=guide),
    }
    parts = tuple(
        PartCost.model_validate(dict(zip(columns, part, strict=True)))
        for part in zip(*columns.values(), strict=True)
    )
    embeddings = _elements(network.parameters()) - sum(counts)
    return parts, embeddings, _elements(layer.weight for layer in linear)


def _elements(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _disk(size: Size, parameters: int, splits: dict[str, int]) -> Disk:
    sets = 1 + len(size.training.ema_decays)  # the weights and their moving averages
    checkpoint = sets * FLOAT32 * parameters
    checkpoint += optimizer_bytes(size.model, parameters, size.training.optimizer)
    return Disk(
        data_at_most=sum(splits.values()) * 3 * size.model.image_size**2,
        raw_archives=RAW_ARCHIVES_BYTES if size.training.dataset in IMAGENET_SIDES else 0,
        checkpoint=checkpoint,
        checkpoints_kept=size.training.keep_checkpoints * checkpoint,
    )
