"""`fractal parity`: hold our model against numbers measured on the published implementation.

A case is a folder with `config.json`, `weights.safetensors` (published names),
`inputs.safetensors` and `expected.safetensors`; sizes and the mix of levels are free.

Tolerances, float32: losses and conditions 1e-5 relative, gradient norms 1e-4 relative, greedy
samples equal in 99.9 % of the values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fractal_model.checkpoints.published_names import from_published, model_config, our_name
from fractal_model.common.errors import FractalError, one_line
from fractal_model.config.sampling import SamplingConfig
from fractal_model.model.ar import ARLevel
from fractal_model.model.fractal import NO_CLASS, FractalModel, Pass, Rows
from fractal_model.model.losses import published_evaluation_loss, training_loss
from fractal_model.model.pixels import patchify
from fractal_model.model.randomness import ImageNoise
from fractal_model.model.weights import differences
from fractal_model.sampling.sampler import Sampler
from fractal_model.sampling.values import most_likely

LOSS_TOLERANCE, GRADIENT_TOLERANCE, SAMPLE_TOLERANCE = 1e-5, 1e-4, 1e-3
SAMPLE_LOGIT_SCALE, SAMPLE_FILTER_THRESHOLD = 1.05, 1e-4
CASE_FILES = (
    "config.json",
    "weights.safetensors",
    "inputs.safetensors",
    "expected.safetensors",
)
_GREEDY_SAMPLE = re.compile(r"greedy_sample_cfg(\d+(?:\.\d+)?)_uint8")
CONDITION_NAMES = ("middle", "top", "right", "bottom", "left")


@dataclass(frozen=True)
class Comparison:
    """One quantity: its error beside what is allowed."""

    quantity: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # false for NaN


@dataclass(frozen=True)
class Case:
    """One folder, read."""

    model: FractalModel
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]

    @classmethod
    def read(cls, folder: Path) -> Case:
        """FractalError: a file is missing or damaged, or the weights do not fit the sizes."""
        if not folder.is_dir():
            raise FractalError(f"{folder} is no folder: give the folder of a parity case")
        missing = [name for name in CASE_FILES if not (folder / name).is_file()]
        if missing:
            raise FractalError(
                f"{folder} is no parity case: it lacks {', '.join(missing)} of "
                f"{', '.join(CASE_FILES)}"
            )
        try:
            settings = json.loads((folder / "config.json").read_text())
            model = FractalModel(model_config(settings))
            weights, inputs, expected = (
                load_file(folder / f"{name}.safetensors")
                for name in ("weights", "inputs", "expected")
            )
            weights = from_published(weights)
            if wrong := differences(model.state_dict(), weights):
                raise FractalError(f"the weights of the parity case {folder} do not fit: {wrong}")
            model.load_state_dict(weights)
        except (
            ValidationError,
            SafetensorError,
            json.JSONDecodeError,
            RuntimeError,
            TypeError,
        ) as error:
            raise FractalError(
                f"the parity case {folder} is unusable: {one_line(error)}"
            ) from error
        needed = ["images_uint8", "labels", "sample_labels", "sample_num_iters"]
        for i, level in enumerate(model.config.levels):
            needed += [f"mask_level{i}"] if level.generator == "mar" else []
        lacking = [name for name in needed if name not in inputs]
        if lacking:
            raise FractalError(
                f"the parity case {folder} is unusable: inputs.safetensors lacks "
                f"{', '.join(lacking)}"
            )
        return cls(model, inputs, expected)

    def run(self, labels: Tensor) -> Pass:
        return self.model(
            self.inputs["images_uint8"],
            labels,
            masks=self._mask,
            guides=lambda means: (means.round().long(), means),
        )

    def _mask(self, level: int, rows: Rows) -> Tensor:
        return self.inputs[f"mask_level{level}"].bool()


def compare(folder: Path) -> Iterator[Comparison]:
    """Every expected quantity of a case with its error; runs on the CPU in float32."""
    case = Case.read(folder)
    known = 0
    for group in (_losses, _gradients, _conditions, _samples):
        for comparison in group(case):
            known += 1
            yield comparison
    if known != len(case.expected):
        raise FractalError(
            f"{folder} expects {len(case.expected)} quantities, {known} of them known here: "
            f"see {sorted(case.expected)[:3]} …"
        )


def _losses(case: Case) -> Iterator[Comparison]:
    labels = case.inputs["labels"]
    case.model.eval()
    with torch.no_grad():
        unconditional = case.run(torch.full_like(labels, NO_CLASS))
    found = {"eval_loss_unconditional_nats": published_evaluation_loss(unconditional)}
    case.model.train().zero_grad()
    loss = training_loss(case.run(labels), red_weight=case.model.config.red_weight)
    loss.backward()
    found["train_loss_conditional"] = loss.detach()
    for name, value in found.items():
        if name in case.expected:
            error = _relative(name, value, case.expected[name])
            yield Comparison(name, error, LOSS_TOLERANCE)


def _gradients(case: Case) -> Iterator[Comparison]:
    ours = {
        name: p.grad.norm() if p.grad is not None else torch.zeros(())
        for name, p in case.model.named_parameters()
    }
    for name, expected in case.expected.items():
        if name == "grad_norm_total":
            found = torch.stack(list(ours.values())).norm()
        else:
            found = ours.get(our_name(name.removeprefix("grad_norm.")))
            if found is None or not name.startswith("grad_norm."):
                continue
        yield Comparison(name, _relative(name, found, expected), GRADIENT_TOLERANCE)


def _conditions(case: Case) -> Iterator[Comparison]:
    """All positions are wanted here, also those that the mask keeps from the next level."""
    case.model.eval()
    level, images = case.model.levels[0], case.inputs["images_uint8"]
    with torch.no_grad():
        handed_on = level0_conditions(case.model, images, case.inputs)
    names = CONDITION_NAMES[: handed_on.shape[1]]
    for name, expected in case.expected.items():
        middle, _, position = name.rpartition("_")
        if middle == "level0_conditions" and position in names:
            found = handed_on[:, names.index(position)].view(len(images), level.config.tokens, -1)
            yield Comparison(name, _relative(name, found, expected), LOSS_TOLERANCE)


def level0_conditions(model: FractalModel, images: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """(B · T, n, D): what level 0 hands on for `sample_labels`."""
    level = model.levels[0]
    tokens = patchify(images, level.config.sub_patch_size)
    root = model.root(inputs["sample_labels"])
    if isinstance(level, ARLevel):
        return level(tokens, root).values_NCD
    mask = inputs["mask_level0"].bool()
    return level(tokens, mask, root, wanted=torch.ones_like(mask)).values_NCD


def _samples(case: Case) -> Iterator[Comparison]:
    labels = case.inputs["sample_labels"]
    iterations = tuple(case.inputs["sample_num_iters"].tolist())
    for name, expected in case.expected.items():
        guidance = _GREEDY_SAMPLE.fullmatch(name)
        if guidance is None:
            continue
        settings = SamplingConfig(
            guidance=float(guidance[1]),
            logit_scale=SAMPLE_LOGIT_SCALE,
            iterations=iterations,
            filter_threshold=SAMPLE_FILTER_THRESHOLD,
        )
        sampler = Sampler(case.model, settings, draw=most_likely)
        images = sampler.from_noise(labels, _in_order(len(labels), case.model))
        _require_shape(name, images, expected)
        differing = (images != expected).double().mean().item()
        yield Comparison(name, differing, SAMPLE_TOLERANCE)


def _in_order(images: int, model: FractalModel) -> ImageNoise:
    """Orders 0, 1, 2, … in place of random ones, as the cases were measured."""
    noise = ImageNoise.draw([0] * images, model.config, torch.device("cpu"))
    orders = tuple(
        None if scores is None else torch.arange(scores.shape[-1]).expand_as(scores)
        for scores in noise.orders
    )
    return ImageNoise(noise.pixels, orders, noise.guides)


def _relative(name: str, found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value: for a vector its scale counts."""
    _require_shape(name, found, expected)
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


def _require_shape(name: str, found: Tensor, expected: Tensor) -> None:
    if found.numel() != expected.numel() or found.squeeze().shape != expected.squeeze().shape:
        raise FractalError(
            f"the expected {name} has the shape {list(expected.shape)}, this model's has "
            f"{list(found.shape)}: the case belongs to another model"
        )
