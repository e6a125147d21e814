"""The rounds of a discriminative fine-tuning, kept in a folder.

    round-1            checkpoint at the end of round 1
    round-2-samples    images that the model of round 1 has drawn for round 2, in parts

Decided here: a finished round is never repeated, and neither is a sample. A tuning that was stopped
takes the steps of the broken round again, from the same samples and with the same random numbers,
so it ends with the weights of a tuning that was not stopped.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fractal_model.checkpoints.checkpoint import Progress, load_checkpoint, save_checkpoint
from fractal_model.checkpoints.storage import is_complete
from fractal_model.common.devices import compute_device
from fractal_model.common.errors import FractalError
from fractal_model.common.fingerprint import fingerprint
from fractal_model.config.ddo import DDOConfig
from fractal_model.config.params import Size
from fractal_model.data.manifest import Manifest
from fractal_model.data.prepared import PreparedSplit
from fractal_model.generation.sample_images import collect_images
from fractal_model.model.fractal import FractalModel
from fractal_model.parallel.parts import MapParts, map_in_this_process
from fractal_model.parallel.stored_parts import StoredParts
from fractal_model.training.ddo import (
    Samples,
    TuningStep,
    round_images,
    sample_plan,
    tune_round,
    tuning_recipe,
)
from fractal_model.training.start import Start

OnSamples = Callable[[int, int, int], None]
"""Function that receives the round, the number of samples drawn so far, and the number in all."""
OnStep = Callable[[int, TuningStep], None]
"""Function that receives the round and each of its steps."""


def tuning_fingerprint(size: Size, settings: DDOConfig, manifest: Manifest, start: Start) -> str:
    """SHA-256 of everything that decides the weights of a tuning: the model, the recipe, the
    settings, the data and the weights that it starts from."""
    recipe = tuning_recipe(size, settings, 1).without_operational_settings()
    weights = size.evaluation.weights
    return fingerprint(
        size.model, recipe, settings, manifest.checksum, f"ddo of {weights} from {start.checksum}"
    )


def require_known_classes(start: Start) -> None:
    """Raise FractalError if the model does not know all classes of the data set."""
    if start.new_classes:
        raise FractalError(
            f"the model {start.source} does not know {start.new_classes} of the data set's "
            f"{start.classes} classes, so it has no samples of them: train with start_from first"
        )


@dataclass(frozen=True)
class Tuning:
    """A tuning of one size, whose rounds are kept in `folder`."""

    size: Size
    settings: DDOConfig
    split: PreparedSplit
    """The training images."""
    fingerprint: str
    folder: Path
    map_parts: MapParts = field(default=map_in_this_process)
    """Runs the sampling, in this process or in several."""

    @property
    def images(self) -> int:
        """Number of real images that one round sees."""
        return round_images(self.size, self.settings, len(self.split))

    @property
    def steps(self) -> int:
        """Number of steps of all rounds."""
        batch = tuning_recipe(self.size, self.settings, 1).batch_size
        return self.settings.rounds * self.images // batch

    def run(self, start: FractalModel, on_samples: OnSamples, on_step: OnStep) -> Path:
        """Tune from the model `start` to the end; return the folder of the last round's checkpoint.
        FractalError: a loss or gradient is not finite, or the disk is full."""
        reference = start
        for number in range(1, self.settings.rounds + 1):
            place = self.folder / f"round-{number}"
            if not is_complete(str(place)):
                self._run_round(number, reference, place, on_samples, on_step)
            # Loaded, so that a tuning that was stopped here has the same numbers.
            reference = load_checkpoint(place).build_model(self.size.evaluation.weights)
        return place

    def _run_round(
        self,
        number: int,
        reference: FractalModel,
        place: Path,
        on_samples: OnSamples,
        on_step: OnStep,
    ) -> None:
        kept = self.folder / f"{place.name}-samples"
        samples = self._draw(number, reference, kept, on_samples)
        recipe = tuning_recipe(self.size, self.settings, number)
        device = compute_device()
        trainer, steps = tune_round(
            reference,
            samples,
            self.split,
            recipe,
            self.settings,
            images=self.images,
            device=device,
        )
        for step in steps:
            on_step(number, step)
        save_checkpoint(
            place,
            model=trainer.model,
            optimizer=None,
            progress=Progress(
                size=self.size.name,
                fingerprint=self.fingerprint,
                position=number * self.images,
                steps=number * trainer.steps,
            ),
            averages=trainer.averages.state(),
            serving=self.size.serving,
        )
        shutil.rmtree(kept, ignore_errors=True)

    def _draw(
        self, number: int, reference: FractalModel, folder: Path, on_samples: OnSamples
    ) -> Samples:
        per_class = np.bincount(self.split.labels(), minlength=self.size.model.num_classes).tolist()
        sampling, labels, seeds = sample_plan(self.size, self.settings, per_class, number)
        images = collect_images(
            reference,
            sampling,
            labels,
            seeds,
            lambda done: on_samples(number, done, len(labels)),
            largest=self.size.evaluation.batch_size,
            map_parts=StoredParts(folder, self.map_parts),
        )
        return Samples(images, labels)
