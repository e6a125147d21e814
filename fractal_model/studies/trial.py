"""One trial of a study: a variant with one seed, checked before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from fractal_model.common.errors import FractalError
from fractal_model.common.fingerprint import fingerprint
from fractal_model.config.ddo import DDOConfig
from fractal_model.config.params import Params, Size
from fractal_model.config.weights import MODEL, average_name, choose_average
from fractal_model.data.holdout import count_training_images
from fractal_model.data.manifest import Manifest
from fractal_model.evaluation.inputs import EvaluationInputs
from fractal_model.metrics.names import CONDITIONAL_NLL, NLL
from fractal_model.sampling.guide import require_guide
from fractal_model.training import launch
from fractal_model.training.ddo import require_exact_likelihood
from fractal_model.training.start import read_start

LIKELIHOODS = {NLL: False, CONDITIONAL_NLL: True}
"""Metrics of held-out images, and whether the model gets their classes."""


class Afterwards(NamedTuple):
    """What happens to the model of a trial after its training."""

    guide: Trial | None
    """The trial whose model guides the samples, as a weaker one."""
    tuned: str | None
    """Weights that a fine-tuning with the model's own samples starts from; None: there is none."""


@dataclass(frozen=True)
class Trial:
    """One variant with one seed, checked and ready to be run in another process."""

    variant: str
    seed: int
    params: Params
    size: Size
    manifest: Manifest
    training: str
    """Fingerprint of the training."""
    fingerprint: str
    """Fingerprint of the result: of the training, and of what decides how it is measured."""
    metrics: tuple[str, ...]
    afterwards: Afterwards

    @property
    def images(self) -> int:
        """Number of images that the whole training sees."""
        recipe = self.size.training
        return recipe.epochs * count_training_images(self.manifest, recipe.holdout)

    @property
    def name(self) -> str:
        return f"{self.variant}, seed {self.seed}"

    @property
    def needs_samples(self) -> bool:
        return bool(set(self.metrics) - set(LIKELIHOODS))

    @property
    def tuning(self) -> DDOConfig:
        """Settings of the fine-tuning."""
        return self.params.ddo.get(self.size.name, DDOConfig())


def plan_trial(
    params: Params,
    size_name: str,
    variant: str,
    seed: int,
    metrics: tuple[str, ...],
    afterwards: Afterwards,
) -> Trial:
    """Check one trial. FractalError: the data set, the reference of the sample metrics or the
    weights to start from are missing or do not fit the size; the guide does not fit the model; or
    a model with MAR levels is to be fine-tuned. MLflow must be connected."""
    size, manifest = launch.load_size_and_manifest(params, size_name, seed=seed)
    training = launch.run_fingerprint(size, manifest, read_start(size, params.paths.outputs))
    trial = Trial(variant, seed, params, size, manifest, training, "", metrics, afterwards)
    return replace(trial, fingerprint=fingerprint(training, *_measured(trial), *_described(trial)))


def _measured(trial: Trial) -> list[str]:
    """What decides how the model is measured."""
    size, settings = trial.size, trial.size.evaluation
    measured = [f"{settings.weights} {settings.likelihood_passes} {settings.seed}"]
    if trial.needs_samples:
        inputs = EvaluationInputs(trial.params, size.training.dataset)
        measured.append(inputs.protocol(settings, sampling=size.sampling).fingerprint)
    return measured


def _described(trial: Trial) -> list[str]:
    """What happens after the training, checked and as texts for the fingerprint."""
    guide, tuned = trial.afterwards
    described = []
    if guide is not None:
        require_guide(guide.size.model, trial.size.model)
        described.append(f"guide {guide.training} {guide.size.evaluation.weights}")
    if tuned is not None:
        require_exact_likelihood(trial.size)
        _require_weights(tuned, trial)
        described.append(f"tuned from {tuned} {trial.tuning.model_dump_json()}")
    return described


def _require_weights(name: str, trial: Trial) -> None:
    averages = [average_name(decay) for decay in trial.size.training.ema_decays]
    try:
        if name != MODEL:
            choose_average(name, averages)
    except ValueError as error:
        raise FractalError(f"tuned, {trial.variant}: {error}") from error
