"""Parity: comparison of our model with numbers measured on the published implementation.

A parity case is a folder with `config.json`, `weights.safetensors` (published names),
`inputs.safetensors` and `expected.safetensors`. Its model need not be a size of `params.yaml`.

Tolerances, float32: losses and conditions 1e-5 relative, gradient norms 1e-4 relative, greedy
samples equal in 99.9 % of the values.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fractal_model.checkpoints.published_names import from_published, model_config, our_name
from fractal_model.common.errors import FractalError, one_line
from fractal_model.config.sampling import SamplingConfig
from fractal_model.model.ar import ARLevel
from fractal_model.model.fractal import NO_CLASS, FractalModel, Pass
from fractal_model.model.losses import published_evaluation_loss, training_loss
from fractal_model.model.patches import patchify
from fractal_model.model.randomness import ImageNoise
from fractal_model.model.weights import differences
from fractal_model.sampling.sampler import Sampler
from fractal_model.sampling.values import most_likely

LOSS_TOLERANCE, GRADIENT_TOLERANCE, SAMPLE_TOLERANCE = 1e-5, 1e-4, 1e-3
SAMPLE_LOGIT_SCALE, SAMPLE_FILTER_THRESHOLD = 1.05, 1e-4
_UNUSABLE = (ValidationError, SafetensorError, json.JSONDecodeError, RuntimeError, TypeError)
"""Errors that reading a case raises if it is damaged or belongs to another model."""
CONDITION_NAMES = ("middle", "top", "right", "bottom", "left")
_GREEDY_SAMPLE = re.compile(r"greedy_sample_cfg(\d+(?:\.\d+)?)_uint8")


@dataclass(frozen=True)
class Comparison:
    """Our model's error in one quantity of a parity case, and the largest allowed error."""

    quantity: str
    error: float
    tolerance: float

    @property
    def is_within_tolerance(self) -> bool:
        return self.error <= self.tolerance  # It is False for NaN.


@dataclass(frozen=True)
class Case:
    """The model, the inputs and the expected values of one parity case."""

    model: FractalModel
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a parity case from its folder. FractalError: a file is missing or damaged, or the
        weights do not fit the configuration."""
        if not folder.is_dir():
            raise FractalError(f"{folder} is not a folder: give the folder of a parity case")
        files = ("config.json", *(f"{n}.safetensors" for n in ("weights", "inputs", "expected")))
        if missing := [name for name in files if not (folder / name).is_file()]:
            raise FractalError(
                f"{folder} is not a parity case: it lacks {', '.join(missing)}; copy it again"
            )
        try:
            model = FractalModel(model_config(json.loads((folder / "config.json").read_text())))
            weights, inputs, expected = (load_file(folder / name) for name in files[1:])
            weights = from_published(weights)
            if wrong := differences(model.state_dict(), weights):
                raise FractalError(
                    f"the weights of the parity case {folder} do not fit its config.json: {wrong}; "
                    f"give a case whose files belong together"
                )
            model.load_state_dict(weights)
        except _UNUSABLE as error:
            raise FractalError(
                f"the parity case {folder} is unusable: {one_line(error)}; copy it again"
            ) from error
        levels = enumerate(model.config.levels)
        masks = [f"mask_level{i}" for i, level in levels if level.generator == "mar"]
        needed = ["images_uint8", "labels", "sample_labels", "sample_num_iters", *masks]
        if lacking := [name for name in needed if name not in inputs]:
            raise FractalError(
                f"the parity case {folder} is unusable: inputs.safetensors lacks "
                f"{', '.join(lacking)}; copy it again"
            )
        return cls(model, inputs, expected)

    def run(self, labels: Tensor) -> Pass:
        """Apply the model to the images and masks of the case, with the classes `labels`, int64
        (B,). The guiding pixels are the mean colours, without noise."""
        return self.model(
            self.inputs["images_uint8"],
            labels,
            masks=lambda level, rows: self.inputs[f"mask_level{level}"].bool(),
            guides=lambda means: (means.round().long(), means),
        )


Quantities = Iterator[tuple[str, Tensor]]
"""Pairs: the name of an expected quantity, and its value computed with our model."""


def compare(folder: Path) -> Iterator[Comparison]:
    """Compute every expected quantity of the parity case in `folder`, on the CPU in float32. Yield
    its comparison with the expected value. FractalError: the case is unusable, or it expects an
    unknown quantity."""
    case, compared = Case.read(folder), 0
    for quantities, measure_error, tolerance in (
        (_losses(case), _relative_error, LOSS_TOLERANCE),
        (_gradient_norms(case), _relative_error, GRADIENT_TOLERANCE),  # after the training loss
        (_conditions(case), _relative_error, LOSS_TOLERANCE),
        (_samples(case), _differing_share, SAMPLE_TOLERANCE),
    ):
        for name, ours in quantities:
            expected = case.expected[name]
            if ours.squeeze().shape != expected.squeeze().shape:
                raise FractalError(
                    f"the expected {name} has the shape {list(expected.shape)}, this model's has "
                    f"{list(ours.shape)}: the case belongs to another model, measure it again"
                )
            compared += 1
            yield Comparison(name, measure_error(ours, expected), tolerance)
    if compared != len(case.expected):
        raise FractalError(
            f"{folder} expects {len(case.expected)} quantities, but only {compared} are known: "
            f"check the names in expected.safetensors, {sorted(case.expected)[:3]} …"
        )


def _losses(case: Case) -> Quantities:
    labels = case.inputs["labels"]
    case.model.eval()
    with torch.no_grad():
        unconditional = case.run(torch.full_like(labels, NO_CLASS))
    case.model.train().zero_grad()
    loss = training_loss(case.run(labels), red_weight=case.model.config.red_weight)
    loss.backward()
    losses = {
        "eval_loss_unconditional_nats": published_evaluation_loss(unconditional),
        "train_loss_conditional": loss.detach(),
    }
    yield from ((name, value) for name, value in losses.items() if name in case.expected)


def _gradient_norms(case: Case) -> Quantities:
    norms = {
        name: p.grad.norm() if p.grad is not None else torch.zeros(())
        for name, p in case.model.named_parameters()
    }
    for name in case.expected:
        parameter = our_name(name.removeprefix("grad_norm."))
        if name == "grad_norm_total":
            yield name, torch.stack(list(norms.values())).norm()
        elif name.startswith("grad_norm.") and parameter in norms:
            yield name, norms[parameter]


def _conditions(case: Case) -> Quantities:
    """Yield the conditions that level 0 of our model gives to level 1. Each of CONDITION_NAMES, the
    sub-patch itself or one neighbour, has a tensor (B, T, D): B images, T sub-patches, width D. All
    sub-patches have conditions, masked or not."""
    case.model.eval()
    level, images = case.model.levels[0], case.inputs["images_uint8"]
    tokens = patchify(images, level.config.sub_patch_size)
    with torch.no_grad():
        root = case.model.root(case.inputs["sample_labels"])
        if isinstance(level, ARLevel):
            conditions = level(tokens, root).values_NCD
        else:
            mask = case.inputs["mask_level0"].bool()
            conditions = level(
                tokens, mask, root, selected=torch.ones_like(mask).nonzero(as_tuple=True)
            ).values_NCD
    for position, name in enumerate(CONDITION_NAMES[: conditions.shape[1]]):
        if (name := f"level0_conditions_{name}") in case.expected:
            yield name, conditions[:, position].view(len(images), level.config.tokens, -1)


def _samples(case: Case) -> Quantities:
    labels = case.inputs["sample_labels"]
    for name in case.expected:
        if guidance := _GREEDY_SAMPLE.fullmatch(name):
            settings = SamplingConfig(
                guidance=float(guidance[1]),
                logit_scale=SAMPLE_LOGIT_SCALE,
                iterations=tuple(case.inputs["sample_num_iters"].tolist()),
                filter_threshold=SAMPLE_FILTER_THRESHOLD,
            )
            sampler = Sampler(case.model, settings, draw=most_likely)
            yield name, sampler.from_noise(labels, _noise_in_order(len(labels), case.model))


def _noise_in_order(images: int, model: FractalModel) -> ImageNoise:
    """Draw the random numbers for sampling `images` images. The order in which a MAR level predicts
    sub-patches is not random: it is 0, 1, 2, …, as in the parity cases."""
    noise = ImageNoise.draw([0] * images, model.config, torch.device("cpu"))
    orders = tuple(
        None if scores is None else torch.arange(scores.shape[-1]).expand_as(scores)
        for scores in noise.orders
    )
    return ImageNoise(noise.pixels, orders, noise.guides)


def _relative_error(ours: Tensor, expected: Tensor) -> float:
    """Return the largest absolute difference, divided by the largest absolute expected value."""
    return ((ours - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


def _differing_share(ours: Tensor, expected: Tensor) -> float:
    return (ours != expected).double().mean().item()
