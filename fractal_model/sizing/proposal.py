"""Propose all settings of a size from the facts of its data set, this machine and a time budget.

Decided here: a model is as large as the number of images allows and as the budget can train. A
training sees at least 0.03 images for each parameter, as the one of `digits` does (the published
ones see 2.4). So a small budget gives a smaller model, not a large one that is hardly trained.
"""

from dataclasses import dataclass

from fractal_model.common.plurals import count_of
from fractal_model.config.architecture import Architecture
from fractal_model.config.mask_ratio import MaskRatio
from fractal_model.config.model import Generator, ModelConfig
from fractal_model.config.params import Size
from fractal_model.config.sampling import SamplingConfig
from fractal_model.costs.flops import sampling_flops, training_flops
from fractal_model.costs.shapes import training_shares
from fractal_model.sizing.choices import Choice, Entry, ImageSet, Proposal, values
from fractal_model.sizing.layers import LADDER, large_grid_note, propose_layers, reuse_layers
from fractal_model.sizing.machine import Machine
from fractal_model.sizing.protocols import propose_evaluation, propose_sampling
from fractal_model.sizing.recipe import Plan, propose_recipe
from fractal_model.sizing.resources import count_parameters, propose_resources, propose_upkeep

CPU_BUDGET, GPU_BUDGET = 3600.0, 8 * 3600.0
"""Seconds of training that are planned by default: an hour on a CPU, a night on GPUs."""
_SEEN_PER_PARAMETER = 0.03
_MOST_EPOCHS = ((10_000, 100), (200_000, 200), (float("inf"), 800))
"""Largest number of epochs for data sets below a number of training images. 800 is published."""
_START_SECONDS = 30.0
_FREE = 0.7
"""With a smaller share of its CPU a trial step says little about a machine that is free."""
_SAMPLING_SHARE, _AR_SAMPLING_SHARE = 0.5, {False: 0.13, True: 0.05}
"""Speed of sampling, in operations per second, as a share of the speed of training: with MAR
levels, and with AR levels alone without and with a GPU. (`fractal benchmark` of a 64 px model of
width 128 on two cores, not compiled: 2.8 % and 20.8 % of the ceiling; `ar-64` on an H100: 0.9 % and
19.4 %.)"""
_LARGEST_AR_SIDE = 64
"""Largest side of images for which AR levels are proposed. A larger image has more sub-patches, of
which an AR level draws one after the other, while a MAR level takes no more iterations."""


@dataclass(frozen=True)
class Request:
    """What a size is proposed for."""

    images: ImageSet
    machine: Machine
    budget: float | None = None
    """Seconds of training; None: by default an hour on a CPU and a night on GPUs, and with `like`
    as many epochs as its recipe has."""
    like: Size | None = None
    """Size whose architecture and recipe are followed; None: a new architecture is proposed."""
    like_row: Architecture | None = None
    """Row of `like` in the section `models`; None if `like` is None."""
    flip: bool = False
    speed: float | None = None
    """Operations per second that training reaches on the whole machine, as a trial step measured
    it; None: the machine's estimate."""
    cpu_share: float = 1.0
    """Share of a CPU that the trial step had; 1 if nothing kept it waiting."""
    most_width: int = LADDER[-1].width
    """Largest width of level 0."""
    most_at_a_time: int = 1 << 20
    """Largest number of images that a worker may compute at a time."""

    @property
    def training_speed(self) -> float:
        """Operations per second that training reaches on the whole machine."""
        return self.speed or self.machine.training_speed

    @property
    def mask_ratio(self) -> MaskRatio:
        """The mask ratio of `like`, or the published one."""
        return self.like.training.mask_ratio if self.like else "published"

    @property
    def budget_seconds(self) -> float:
        """The budget, or its default."""
        return self.budget or (GPU_BUDGET if self.machine.gpus else CPU_BUDGET)


def propose(request: Request) -> Proposal:
    """Propose a size. FractalError: the size to follow is for another resolution, or a training
    step does not fit the memory."""
    images, machine, like = request.images, request.machine, request.like
    layers = _choose_layers(request)
    model = _model(layers)
    per_image = _training_flops(model, request.mask_ratio)
    epochs = _choose_epochs(request, _affordable_images(request, model))
    seconds = epochs.value * images.train * per_image / request.training_speed
    plan = Plan(
        images,
        machine,
        model,
        epochs.value,
        seconds,
        request.most_at_a_time,
        like.training.optimizer if like else "adamw",
        request.mask_ratio,
    )
    recipe = propose_recipe(plan, request.flip, like.training if like else None)
    batch, averages = recipe["batch_size"].value, len(recipe["ema_decays"].value)
    # With one image at a time there is no other one to take noise from.
    resources = propose_resources(plan, batch, averages, 2 if "context_noise" in recipe else 1)
    if resources["images_per_worker"].value < 2:
        recipe = {key: choice for key, choice in recipe.items() if key != "context_noise"}
    sampling = propose_sampling(model, like.sampling if like else None)
    drawing = sum(sampling_flops(model, SamplingConfig.model_validate(values(sampling))))
    share = _SAMPLING_SHARE
    if model.is_autoregressive:
        share = _AR_SAMPLING_SHARE[machine.gpus > 0]
    sample_seconds = drawing / (share * request.training_speed)
    return Proposal(
        models=layers,
        training={
            "dataset": Choice(images.name),
            "epochs": epochs,
            **recipe,
            **resources,
            **propose_upkeep(plan, max(1, plan.seen // batch), averages, sample_seconds),
        },
        sampling=sampling,
        evaluation=propose_evaluation(
            images,
            machine,
            model,
            averages=averages,
            training_seconds=seconds,
            sample_seconds=sample_seconds,
        ),
        notes=_notes(request, layers, plan.seen),
    )


def measured_speed(size: Size, seconds_per_image: float) -> float:
    """Operations per second of the size's training on all workers, if one of them trains on an
    image in `seconds_per_image` seconds."""
    recipe = size.training
    return recipe.workers * _training_flops(size.model, recipe.mask_ratio) / seconds_per_image


def training_seconds(size: Size, images: int, speed: float) -> float:
    """Seconds of the size's training on `images` images at `speed` operations per second, the start
    of the workers included."""
    recipe = size.training
    work = recipe.epochs * images * _training_flops(size.model, recipe.mask_ratio)
    return _START_SECONDS + work / speed


def _choose_layers(request: Request) -> Entry:
    images, like = request.images, request.like
    if like is not None and request.like_row is not None:
        return reuse_layers(like.name, request.like_row, images.resolution, images.classes)
    is_ar = not request.machine.gpus and images.resolution <= _LARGEST_AR_SIDE
    generator: Generator = "ar" if is_ar else "mar"
    allowed = next(i for i, rung in enumerate(LADDER) if images.train <= rung.most_images)
    rungs = [rung for rung in LADDER[: allowed + 1] if rung.width <= request.most_width]
    for rung in reversed(rungs):
        layers = propose_layers(rung, images.resolution, images.classes, generator)
        model = _model(layers)
        seen = min(_affordable_images(request, model), _most_epochs(images) * images.train)
        parameters, _ = count_parameters(model)
        if seen >= _SEEN_PER_PARAMETER * parameters:
            break
    reason = f"{in_millions(parameters)} parameters for {count_of(images.train, 'image')}"
    return {**layers, "widths": Choice(layers["widths"].value, reason)}


def _choose_epochs(request: Request, affordable: float) -> Choice:
    train, like = request.images.train, request.like
    if like is not None and request.budget is None:
        return Choice(like.training.epochs, f"as {like.name}")
    epochs, most = int(affordable / train), _most_epochs(request.images)
    if epochs < 1:
        return Choice(1, f"even one takes more than {duration(request.budget_seconds)}")
    if epochs <= most:
        return Choice(epochs, f"what fits in {duration(request.budget_seconds)}")
    return Choice(most, f"more would overfit {count_of(train, 'image')}")


def _most_epochs(images: ImageSet) -> int:
    return next(epochs for below, epochs in _MOST_EPOCHS if images.train < below)


def _affordable_images(request: Request, model: ModelConfig) -> float:
    """Number of images on which the budget can train the model."""
    work = _training_flops(model, request.mask_ratio)
    return request.budget_seconds * request.training_speed / work


def _training_flops(model: ModelConfig, mask_ratio: MaskRatio) -> float:
    shares = training_shares(model, mask_ratio)
    return sum(training_flops(model, shares, activation_checkpointing=False))


def _model(layers: Entry) -> ModelConfig:
    return Architecture.model_validate(values(layers)).to_model()


def _notes(request: Request, layers: Entry, seen: int) -> tuple[str, ...]:
    parameters, _ = count_parameters(_model(layers))
    notes = [large_grid_note(layers)]
    if seen < _SEEN_PER_PARAMETER * parameters / 2:
        notes.append(
            f"the training sees {seen:,} images; a model with {in_millions(parameters)} "
            f"parameters needs {_SEEN_PER_PARAMETER * parameters:,.0f} or more to draw well: give "
            f"it more time, or register the images with a lower resolution"
        )
    if request.cpu_share < _FREE:
        notes.append(
            f"other programs kept the trial step waiting, it had {request.cpu_share:.0%} of its "
            f"CPU: propose the size again when this machine is free"
        )
    if not request.images.held_out:
        notes.append(
            "without held-out images nobody sees when training overfits: register the images with "
            "a holdout"
        )
    return tuple(note for note in notes if note is not None)


def in_millions(number: float) -> str:
    """A number of parameters, such as `6.5 M`."""
    return f"{number / 1e6:.1f} M"


def duration(seconds: float) -> str:
    """A length of time for people, such as `25 minutes` or `3.5 hours`."""
    for unit, length in (("day", 86_400.0), ("hour", 3_600.0), ("minute", 60.0)):
        if seconds >= 1.5 * length or (unit == "minute" and seconds >= 60):
            digits = 0 if unit == "minute" else 1
            number = f"{seconds / length:.{digits}f}".removesuffix(".0")
            return f"{number} {unit}" if number == "1" else f"{number} {unit}s"
    return "less than a minute"
